"""The loopback Hub and the small checkpoints of tests/zoo serve here too."""

from tests.zoo.conftest import add_entry, authors_state, cache, hub_client, module, server

__all__ = ["add_entry", "authors_state", "cache", "hub_client", "module", "server"]
