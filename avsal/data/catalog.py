"""What each data set is, under which terms, and how to get it: `avsal data list|info|fetch`."""

from __future__ import annotations

from dataclasses import dataclass

from avsal.errors import DataError, did_you_mean, plain

_STAVIS = "http://cvsp.cs.ntua.gr/research/stavis/data"
_STAVIS_NOTE = (
    "Preprocessed by the authors of STAViS (frames, wav, annotation, fold lists); no registration. The data keep the "
    "terms of their sources: visit and cite them."
)


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        name: the name in commands.
        title: its name in papers.
        module: the DataModule that reads it.
        content: what it holds.
        sound: "yes", "no" or "silent in practice".
        licence: as stated by the owners; "not stated" where nothing was found.
        page: where it is described.
        steps: how to get it.
        tree: what the folder looks like.
        cite: the publication to cite.
        urls: (address, folder of the layout that it belongs in) of archives that may be fetched directly.
        hub: repository on the Hugging Face Hub, if it is there.
        size: download size as far as it is known.
    """

    name: str
    title: str
    module: str
    content: str
    sound: str
    licence: str
    page: str
    steps: tuple[str, ...]
    tree: str
    cite: str
    urls: tuple[tuple[str, str], ...] = ()
    hub: str | None = None
    size: str = "not stated"


def _stavis(name: str, folder: str, title: str, module: str, content: str, licence: str, cite: str) -> Entry:
    return Entry(
        name,
        title,
        module,
        content,
        "yes",
        licence,
        "http://cvsp.cs.ntua.gr/research/stavis/",
        (_STAVIS_NOTE,),
        f"video_frames/{folder}/<video>/img_00001.jpg, video_audio/{folder}/<video>/<video>.wav,\n"
        f"annotations/{folder}/<video>/{{maps/eyeMap_00001.jpg,fixMap_00001.mat}}, fold_lists/{folder}_list_*_fps.txt\n"
        f"(or the original videos as video/{folder}/<video>.mp4)",
        cite,
        (
            (f"{_STAVIS}/fold_lists.tar.gz", "."),
            (f"{_STAVIS}/annotations/{folder}.tar.gz", "annotations"),
            (f"{_STAVIS}/video_audio/{folder}.tar.gz", "video_audio"),
            (f"{_STAVIS}/video_frames/{folder}.tar.gz", "video_frames"),
        ),
    )


_CROWD_TREE = (
    "Videos/<name>.mp4, TrainTestSplit.json, Saliency{Train,Test}/<name>.mp4,\n"
    "Fixations{Train,Test}/<name>/fixations.json"
)

ENTRIES = (
    Entry(
        "synthav",
        "SynthAV",
        "SynthAVDataModule",
        "generated clips whose sounding object is known; 240 clips of 3 s by default, 160x120, 25 fps, 15 observers",
        "yes",
        "no terms: made by this program",
        "docs/data.md",
        ("avsal data synth --out DIR  (or nothing: made on first use)",),
        "video/, annotations/, fold_lists/, synthav.json",
        "this project",
        size="24 MB",
    ),
    _stavis(
        "diem",
        "DIEM",
        "DIEM",
        "DIEMDataModule",
        "81 videos of 20 to 220 s, 30 fps, about 50 observers each",
        "not stated on the page; CC BY-NC-SA is quoted elsewhere: check before passing it on",
        "Mital et al., Clustering of gaze during dynamic scene viewing is predicted by motion, 2011",
    ),
    _stavis(
        "coutrot1",
        "Coutrot_db1",
        "Coutrot database 1",
        "Coutrot1DataModule",
        "60 clips of 10 to 24 s in four categories, 25 fps",
        "research use with citation",
        "Coutrot and Guyader, How saliency, faces, and sound influence gaze in dynamic social scenes, 2014",
    ),
    _stavis(
        "coutrot2",
        "Coutrot_db2",
        "Coutrot database 2",
        "Coutrot2DataModule",
        "15 clips of four people in a meeting, 20 to 63 s, 25 fps, 40 observers",
        "research use with citation",
        "Coutrot and Guyader, An efficient audiovisual saliency model to predict eye positions in conversations, 2015",
    ),
    _stavis(
        "avad",
        "AVAD",
        "AVAD",
        "AVADDataModule",
        "45 clips of 5 to 10 s with visible sound sources, 16 observers",
        "research use with citation",
        "Min et al., Fixation prediction through multimodal analysis, 2017",
    ),
    _stavis(
        "etmd",
        "ETMD_av",
        "ETMD",
        "ETMDDataModule",
        "12 excerpts of Hollywood films, 25 fps, 10 observers",
        "gaze for research; the films belong to their owners",
        "Koutras and Maragos, A perceptually based spatio-temporal computational framework for visual saliency, 2015; "
        "Tsiami et al., A behaviorally inspired fusion approach for computational audiovisual saliency modeling, 2019",
    ),
    _stavis(
        "summe",
        "SumMe",
        "SumMe with eye tracking",
        "SumMeDataModule",
        "25 user videos, 15 to 30 fps, 10 observers",
        "research use with citation",
        "Gygli et al., Creating summaries from user videos, 2014; Tsiami et al., 2019",
    ),
    Entry(
        "av6",
        "all six audio-visual sets",
        "AVSaliencyDataModule",
        "DIEM, Coutrot 1 and 2, AVAD, ETMD and SumMe together",
        "yes",
        "those of the six sets",
        "http://cvsp.cs.ntua.gr/research/stavis/",
        ("Fetch the six sets into one folder: avsal data fetch diem --out DIR, and so on.",),
        "as the six sets",
        "the six sets",
    ),
    Entry(
        "dhf1k",
        "DHF1K",
        "DHF1KDataModule",
        "1,000 videos of 640x360, 30 fps, 17 observers; labels of 700 are public",
        "silent in practice",
        "not stated beyond citation",
        "https://github.com/wenguanwang/DHF1K",
        (
            "Download video and annotation from the links in the README of the page (Google Drive or Baidu).",
            "Unpack both into one folder.",
        ),
        "video/001.AVI, annotation/0001/{maps,fixation}/0001.png",
        "Wang et al., Revisiting video saliency prediction, 2019",
    ),
    Entry(
        "hollywood2",
        "Hollywood-2",
        "Hollywood2DataModule",
        "1,707 film videos, 19 observers",
        "no",
        "not stated beyond citation",
        "https://github.com/wenguanwang/DHF1K",
        ("Download it from the links in the README of DHF1K and unpack it.",),
        "{training,testing}/<clip>/{images,maps,fixation}/*.png",
        "Mathe and Sminchisescu, Actions in the eye, 2015",
        size="74.6 GB",
    ),
    Entry(
        "ucfsports",
        "UCF Sports",
        "UCFSportsDataModule",
        "150 sports clips, 19 observers",
        "no",
        "not stated beyond citation",
        "https://github.com/wenguanwang/DHF1K",
        ("Download it from the links in the README of DHF1K and unpack it.",),
        "{training,testing}/<clip>/{images,maps,fixation}/*.png",
        "Mathe and Sminchisescu, Actions in the eye, 2015",
    ),
    Entry(
        "salicon",
        "SALICON",
        "SALICONDataModule",
        "20,000 images of MS COCO, 640x480; labels of 15,000 are public; mouse",
        "no",
        "annotation CC BY 4.0; images as Flickr",
        "http://salicon.net/challenge-2017/",
        (
            "Download images, maps and fixations from the page (Google Drive).",
            "Keep the editions of 2015 and 2017 apart.",
        ),
        "images/*.jpg, maps/{train,val}/*.png, fixations/{train,val}/*.mat",
        "Jiang et al., SALICON, 2015",
    ),
    Entry(
        "mit1003",
        "MIT1003",
        "MIT1003DataModule",
        "1,003 images, 15 observers, 3 s each",
        "no",
        "research use",
        "http://people.csail.mit.edu/tjudd/WherePeopleLook/",
        ("Download ALLSTIMULI.zip and ALLFIXATIONMAPS.zip from the page and unpack both into one folder.",),
        "ALLSTIMULI/*.jpeg, ALLFIXATIONMAPS/<stem>_{fixMap,fixPts}.jpg",
        "Judd et al., Learning to predict where humans look, 2009",
    ),
    Entry(
        "photos",
        "Photographs with fixations",
        "PhotosDataModule",
        "OSIE (700 pictures, 15 observers), EyeCrowd (500, 16), Scene500 (500, 12), or your own in the same format",
        "no",
        "fixations: MIT licence (each set's repository); the pictures belong to their owners",
        "https://github.com/NUS-VIP/predicting-human-gaze-beyond-pixels",
        (
            "Clone the page, https://github.com/NUS-VIP/saliency-in-crowd and https://github.com/Yanakz/Scene.",
            "Write each set's fixations into one table, in shares of the picture (Scene500's are pixels of each file).",
        ),
        "<set>/images/<name>.jpg, <set>/fixations.csv.gz (image, observer, order, x, y)",
        "Xu et al., Predicting human gaze beyond pixels, JoV 2014; Jiang et al., Saliency in crowd, ECCV 2014",
    ),
    Entry(
        "hevc33",
        "HEVC-33",
        "HEVC33DataModule",
        "33 test sequences of video coding, 32 observers",
        "no",
        "gaze 'freely' usable with citation; the sequences have their own owners",
        "https://github.com/remega/video_database",
        ("Clone the page; put the sequences as <name>.mp4 beside the .mat.",),
        "video_database.mat, clips/<name>.mp4",
        "Xu et al., Learning to detect video saliency with HEVC features, TIP 2017",
    ),
    Entry(
        "findwho",
        "FindWho",
        "FindWhoDataModule",
        "65 multi-face clips of 16 to 24 s, 1280x720, 39 observers",
        "yes",
        "not stated",
        "https://github.com/yufanLIU/find",
        ("Clone the page with its large files.",),
        "video_database.mat, <name>.mp4 (also in Our_database/)",
        "Liu et al., Predicting salient face in multiple-face videos, 2017",
    ),
    Entry(
        "mvva",
        "MVVA",
        "MVVADataModule",
        "300 multi-face clips, 34 observers",
        "yes",
        "access on request",
        "https://github.com/MinglangQiao/MVVA-Database",
        ("Follow the page (Dropbox), and unpack it.",),
        "our_database_video/*.avi, all_videos_all_frames_fixation/<id>.npy or video_database.mat",
        "Liu et al., Learning to predict salient faces: a novel visual-audio saliency model, 2020",
    ),
    Entry(
        "ledov",
        "LEDOV",
        "LEDOVDataModule",
        "538 videos, 32 observers",
        "no",
        "'freely use', cite",
        "https://github.com/remega/LEDOV-eye-tracking-database",
        ("Follow the page (Dropbox), and unpack it.",),
        "<video>/<video>.mp4, <video>/Data.mat",
        "Jiang et al., DeepVS, 2018",
    ),
    Entry(
        "avimos",
        "AViMoS (AIM 2024)",
        "AViMoSDataModule",
        "1,500 Full-HD videos, mean 19 s, over 70 observers each (mouse)",
        "yes",
        "CC BY",
        "https://github.com/msu-video-group/ECCVW24_Saliency_Prediction",
        ("avsal data fetch avimos --out DIR",),
        _CROWD_TREE,
        "Moskalenko et al., AIM 2024 challenge on video saliency prediction",
        hub="ANDRYHA/AudioVisualMouseSaliency",
    ),
    Entry(
        "ntire2026",
        "NTIRE 2026",
        "NTIRE2026DataModule",
        "2,000 Full-HD videos, over 70 observers each (mouse)",
        "yes",
        "CC BY",
        "the Hub repository ANDRYHA/VideoSaliencyChallenge",
        ("avsal data fetch ntire2026 --out DIR",),
        _CROWD_TREE,
        "NTIRE 2026 challenge on video saliency prediction",
        hub="ANDRYHA/VideoSaliencyChallenge",
    ),
    Entry(
        "crowdsal",
        "CrowdSAL",
        "CrowdSALDataModule",
        "5,000 Full-HD videos, 30 fps, over 70 observers each (mouse)",
        "yes",
        "CC BY",
        "the Hub repository ANDRYHA/CrowdSAL",
        ("avsal data fetch crowdsal --out DIR --split test --max-videos 50",),
        "{Train,Test}/{Videos,Saliency}/<id>.mp4, {Train,Test}/Fixations/<id>.json",
        "CrowdSAL",
        hub="ANDRYHA/CrowdSAL",
    ),
    Entry(
        "ego4d",
        "Ego4D, gaze",
        "Ego4DGazeDataModule",
        "27 social videos of head-mounted cameras with gaze, 30 fps; 15,310 training and 5,202 test segments",
        "yes",
        "Ego4D licence agreement",
        "https://ego4d-data.org/docs/data/gaze/",
        (
            "Sign the licence agreement at https://ego4ddataset.com and wait for the access keys.",
            'Fetch the videos and the gaze: pip install ego4d, then ego4d --output_directory="DIR" --datasets '
            "full_scale gaze --benchmarks av (see the page for the universe of gaze videos).",
            "Put CSTS's lists train_ego4d_gaze.csv and test_ego4d_gaze.csv into the folder (or give lists=).",
        ),
        "full_scale.gaze/<uid>.mp4 (or full_scale/), gaze/<uid>.csv, missing_audio/<uid>.wav,\n"
        "{train,test}_ego4d_gaze.csv\n"
        "(or CSTS's pre-processed clips.gaze/, gaze_frame_label/, clips.audio_24kHz/)",
        "Grauman et al., Ego4D: around the world in 3,000 hours of egocentric video, 2022",
    ),
    Entry(
        "aria",
        "Aria Everyday Activities, gaze",
        "AriaGazeDataModule",
        "143 recordings of Project Aria glasses with gaze, 20 fps; 10,456 training and 2,901 test segments",
        "yes",
        "Aria Everyday Activities licence agreement",
        "https://www.projectaria.com/datasets/aea/",
        (
            "Accept the licence agreement on the page and take the download links file that it gives.",
            "Fetch recording.vrs and mps/eye_gaze of every recording with projectaria_tools' aria_dataset_downloader; "
            "reading them needs pip install 'avsal[aria]'.",
            "Put CSTS's {train,test}_aria_gaze.csv and aria_video_ids_matching.xlsx into the folder.",
        ),
        "<recording>/recording.vrs, <recording>/mps/eye_gaze/general_eye_gaze.csv, {train,test}_aria_gaze.csv\n"
        "(or CSTS's pre-processed clips/, gaze_frame_label/, clips.audio_24kHz/)",
        "Lv et al., Aria Everyday Activities dataset, 2024",
    ),
    Entry(
        "folder",
        "your own videos",
        "FolderDataModule",
        "a folder of videos with one gaze file or saliency video each",
        "if the videos have",
        "yours",
        "docs/data.md",
        ("Put a.mp4 and a.csv (time_s, x_norm, y_norm, observer) in one folder.",),
        "<name>.mp4 with <name>.csv | .tsv | .parquet, or saliency/<name>.mp4",
        "you",
    ),
)


def entry(name: str) -> Entry:
    """Return a data set by name.

    Raises:
        DataError: there is none of this name; the nearest one is named.
    """
    by_name = {plain(known): e for e in ENTRIES for known in (e.title, e.name)}
    if plain(name) not in by_name:
        known = [e.name for e in ENTRIES]
        raise DataError(f"{name!r} is no data set.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return by_name[plain(name)]
