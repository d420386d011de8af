"""ISP: the still-image saliency model, alone and as MSPI's encoder."""

from __future__ import annotations

import pytest
import torch

from avsal.errors import ConfigError, WeightsError
from avsal.models.isp import ISPModule
from avsal.models.mspi import MSPIModule
from tests.golden.mspi import MSPIGolden

SMALL = {"encoder": "mobilenetv2_035", "channels": (16, 32), "size": (64, 96)}


def small(**options: object) -> ISPModule:
    torch.manual_seed(0)
    return ISPModule(**{**SMALL, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    state = MSPIGolden("s3d").state_dict("image_encoder.")
    return {name.removeprefix("image_encoder."): value for name, value in state.items()}


def test_the_released_encoder_loads_alone_and_out_of_a_whole_mspi(released: dict) -> None:
    alone = ISPModule.from_authors(released)
    inside = ISPModule.from_authors({f"image_encoder.{k}": v for k, v in released.items()})
    assert torch.equal(alone.network.encoder.transition16[0].weight, released["smooth_1.0.weight"])
    for name, value in alone.state_dict().items():
        assert torch.equal(inside.state_dict()[name], value), name
    with pytest.raises(WeightsError, match=r"smooth_0|transition32"):
        ISPModule.from_authors({k: v for k, v in released.items() if not k.startswith("smooth_0")})


def test_without_a_decoder_the_map_is_the_averaged_features(released: dict) -> None:
    module = ISPModule.from_authors(released)
    picture = torch.randn(1, 3, 1, 64, 64)
    with torch.inference_mode():
        found = module.network.core(picture).density()[0, 0]
        middle, deep = module.network.encoder(picture[:, :, 0])
        mean = middle.mean(1) / middle.mean() + torch.nn.functional.interpolate(
            deep.mean(1, keepdim=True) / deep.mean(), scale_factor=2, mode="bilinear"
        ).squeeze(1)
    coarse = found.unflatten(0, (4, 16)).unflatten(2, (4, 16)).mean((1, 3))
    assert float(torch.corrcoef(torch.stack([coarse.flatten(), mean.flatten()]))[0, 1]) > 0.9


@pytest.mark.parametrize("shape", [(64, 96), (50, 70), (33, 160)])
def test_any_picture_size_gives_a_density_of_that_size(shape: tuple[int, int]) -> None:
    for decoder in ("conv", "mean"):
        module = small(decoder=decoder).eval()
        with torch.inference_mode():
            output = module.network(torch.randn(2, 3, 1, *shape))
        assert output.logits.shape == (2, 1, *shape)
        torch.testing.assert_close(output.density().sum((2, 3)), torch.ones(2, 1), rtol=1e-4, atol=1e-4)


def test_it_learns_where_the_bright_spot_is() -> None:
    module = small(lr=3e-3).train()
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    generator = torch.Generator().manual_seed(0)

    def spots(count: int) -> dict:
        video = 0.1 * torch.randn(count, 3, 1, 64, 96, generator=generator)
        density = torch.zeros(count, 1, 64, 96)
        for index in range(count):
            row = int(torch.randint(0, 48, (1,), generator=generator))
            column = int(torch.randint(0, 80, (1,), generator=generator))
            video[index, :, 0, row : row + 16, column : column + 16] += 3
            density[index, 0, row : row + 16, column : column + 16] = 1
        return {"video": video, "density": density}

    for _ in range(80):
        data = spots(8)
        terms = module.loss_terms(module(data), data)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    module.eval()
    held_out = spots(16)
    with torch.inference_mode():
        assert float(module.loss_terms(module(held_out), held_out)["cc"]) > 0.5


def test_its_encoder_plugs_into_mspi() -> None:
    isp = small(channels=(16, 56))
    with torch.no_grad():
        isp.network.encoder.transition16[1].running_mean.normal_()
    mspi = MSPIModule(size=(64, 96), width=0.1875, image_encoder="mobilenetv2_035", audio=False)
    mspi.network.image_encoder.load_published(isp.state_dict())
    picture = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = isp.eval().network.encoder(picture)
        for found, value in zip(mspi.eval().network.image_features(picture), expected, strict=True):
            assert torch.equal(found, value)


def test_clips_and_unknown_decoders_are_refused() -> None:
    with pytest.raises(ConfigError, match="single pictures"):
        small().network.core(torch.zeros(1, 3, 16, 64, 96))
    with pytest.raises(ConfigError, match="conv, mean, pyramid"):
        small(decoder="none")
    with pytest.raises(ConfigError, match="multiple of 32"):
        small(size=(60, 96))


# -- the light pyramid ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite() -> ISPModule:
    torch.manual_seed(0)
    return ISPModule(encoder="efficientnet_lite0", size=(64, 96), loss_weights=(1.0, 0.3, 0.05)).eval()


def efficientnet_pytorch_names(classifier: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Rename timm's entries to those of EfficientNet-PyTorch, block by block, written down by hand."""
    flat = {
        f"blocks.{i}.{j}": k
        for k, (i, j) in enumerate((i, j) for i, s in enumerate(classifier.blocks) for j in range(len(s)))
    }
    deep = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    outer = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    renamed = {}
    for name, value in classifier.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            block = ".".join(parts[:3])
            names = deep if f"{block}.conv_pwl.weight" in classifier.state_dict() else first
            renamed[f"_blocks.{flat[block]}.{names[parts[3]]}.{parts[4]}"] = value
        else:
            renamed[f"{outer[parts[0]]}.{parts[1]}"] = value
    return renamed


def test_the_registry_package_s_names_load_every_entry_and_give_the_classifier_s_features(
    lite: ISPModule,
) -> None:
    import timm

    torch.manual_seed(1)
    classifier = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    with torch.no_grad():
        for entry in classifier.state_dict().values():
            if entry.is_floating_point():
                entry.add_(0.01 * torch.rand_like(entry))
    state = efficientnet_pytorch_names(classifier)
    encoder = ISPModule(encoder="efficientnet_lite0", size=(64, 96)).eval().network.encoder
    encoder.load_imagenet(state)
    picture = torch.randn(1, 3, 70, 90)
    with torch.inference_mode():
        expected = classifier.blocks(classifier.bn1(classifier.conv_stem(picture)))
        torch.testing.assert_close(encoder(picture)[-1], expected, rtol=1e-4, atol=1e-5)
    state.pop("_blocks.3._bn1.running_var")
    with pytest.raises(WeightsError, match=r"bn2\.running_var"):
        encoder.load_imagenet(state)


@pytest.mark.parametrize("shape", [(64, 96), (176, 320), (48, 80), (96, 64)])
def test_the_pyramid_gives_a_density_at_a_quarter_of_any_size(
    lite: ISPModule, shape: tuple[int, int]
) -> None:
    with torch.inference_mode():
        output = lite.network(torch.randn(2, 3, 1, *shape))
    assert output.logits.shape == (2, 1, shape[0] // 4, shape[1] // 4)
    torch.testing.assert_close(output.density().sum((2, 3)), torch.ones(2, 1), rtol=1e-4, atol=1e-4)


def test_training_leaves_the_encoder_s_statistics_and_a_picture_s_map_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    module = ISPModule(encoder="efficientnet_lite0", size=(64, 96), lr=1e-3)
    before = {k: v.clone() for k, v in module.state_dict().items() if "running" in k}
    module.train()
    pictures = torch.randn(3, 3, 1, 64, 96)
    together = module({"video": pictures, "frame": torch.zeros(3, 1)}).logits
    alone = module({"video": pictures[1:2], "frame": torch.zeros(1, 1)}).logits
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)
    assert before
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


def test_the_nss_term_rewards_maps_that_are_high_at_fixations(lite: ISPModule) -> None:
    from avsal.types import SaliencyOutput

    density = torch.zeros(1, 1, 8, 12)
    density[0, 0, 2, 3] = 1
    batch = {"density": density, "fixations": torch.tensor([[[[2, 3]]]])}
    at, off = torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 8, 12)
    at[0, 0, 2, 3], off[0, 0, 6, 9] = 4, 4
    hit, miss = (lite.loss_terms(SaliencyOutput(logits, "softmax"), batch) for logits in (at, off))
    assert float(hit["nss"]) > 5 > 0 > float(miss["nss"])
    torch.testing.assert_close(hit["loss"], hit["kl"] - 0.3 * hit["cc"] - 0.05 * hit["nss"])
