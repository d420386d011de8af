"""The files that eye trackers write: their dialects in one table, and their cells.

A dialect is recognised by its columns' names, compared in lower case without blanks, punctuation and a unit of time at
their end: `Gaze point X [MCS norm]` is `gazepointxmcsnorm`. What the columns mean is taken from the makers'
documentation (Tobii Pro Lab and Studio, Pupil Core, Pupil Cloud, EyeLink Data Viewer and ASC, Gazepoint, SMI BeGaze
and IDF text, PsychoPy ioHub).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from avsal.data.gaze.options import Origin, Units
from avsal.data.gaze.sheets import Sheet
from avsal.errors import DataError

#: What the coordinates count: the video's picture, the screen that it stood on, or the stimulus as it was shown.
Extent = Literal["picture", "screen", "media"]


@dataclass(frozen=True)
class Source:
    """One way a table gives the point of gaze.

    Attributes:
        x: columns of x, one for each eye; eyes are averaged where both are valid.
        y: columns of y, likewise.
        unit: what they count; None is decided by the values.
        origin: where y is 0.
        on: what their extent is.
        valid: (column, rule) for each eye; a single x is valid where any of them holds.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    unit: Units | None
    origin: Origin = "top"
    on: Extent = "picture"
    valid: tuple[tuple[str, str], ...] = ()


def _pair(
    name: str,
    unit: str | None,
    origin: Origin = "top",
    on: str = "picture",
    valid: tuple[tuple[str, str], ...] = (),
) -> Source:
    """Return the source of `name`, in which `*` stands for x and y and `left|right` for both eyes."""
    eyes = [name.replace("left|right", eye) for eye in ("left", "right")] if "left|right" in name else [name]
    x, y = (tuple(eye.replace("*", axis) for eye in eyes) for axis in "xy")
    return Source(x, y, cast("Units | None", unit), origin, cast("Extent", on), valid)


@dataclass(frozen=True)
class Dialect:
    """One export of one maker; `marks` are sets of columns, each of which identifies it."""

    tracker: str
    marks: tuple[tuple[str, ...], ...]
    sources: tuple[Source, ...]
    time: tuple[str, ...]
    time_unit: str | None = None
    frame: tuple[str, ...] = ()
    duration: tuple[str, ...] = ()
    duration_unit: str | None = "ms"
    stimulus: tuple[str, ...] = ()
    #: The clock's zero: "stimulus" is its onset, where a column names the stimulus.
    zero: Literal["clock", "stimulus"] = "clock"
    #: A column whose value is subtracted from the time.
    since: str | None = None
    #: Rows that are samples: a column and its value there.
    rows: tuple[str, str] | None = None
    #: A number of an event, its start and its duration: where no number repeats, the rows are events.
    events: tuple[str, str, str] | None = None
    screen: tuple[tuple[str, str], ...] = ()
    media: tuple[tuple[str, str, str, str], ...] = ()


_TOBII_VALID = (("validityleft", "tobii"), ("validityright", "tobii"))
_TOBII = tuple(
    _pair(f"{point}point{eye}*{system}", unit, "top", on, _TOBII_VALID)
    for systems in (
        (("mcsnorm", "normalised", "picture"),),
        (("mcspx", "pixels", "media"),),
        (("dacspx", "pixels", "screen"), ("adcspx", "pixels", "screen"), ("", "pixels", "screen")),
    )
    for point, eye in (("gaze", ""), ("gaze", "left|right"), ("fixation", ""))
    for system, unit, on in systems
)
_BLINKS = (("leftinblink", "zero"), ("rightinblink", "zero"))
_PUPIL_TIME = ("canonicaltimestamp", "gazetimestamp", "eyetimestamp", "starttimestamp", "timestamp")

#: Earlier rows win. A table that matches none of them, or has no coordinates of theirs, is read as a plain one.
DIALECTS = (
    Dialect(
        "psychopy", (("loggedtime",), ("experimentid", "eventid")),
        (
            _pair("left|rightgaze*", None, "centre", "screen", (("status", "tens"), ("status", "ones"))),
            *(_pair(name, None, "centre", "screen", (("status", "zero"),)) for name in ("gaze*", "*", "pos*")),
        ),
        ("time", "t", "timestamp", "frametime"), "s",
    ),
    Dialect(
        "eyelink", (("currentfixx",),),
        (_pair("currentfix*", "pixels", "top", "screen"),),
        ("timestamp", "currentfixstart"), "ms", duration=("currentfixduration",),
        stimulus=("videoname", "stimulus"),
    ),
    Dialect(
        "eyelink",
        (("recordingsessionlabel",), ("samplemessage",), ("averagegazex",), ("timestamp", "leftgazex"),
         ("timestamp", "rightgazex")),
        (
            _pair("left|rightgaze*", "pixels", "top", "screen", _BLINKS),
            _pair("averagegaze*", "pixels", "top", "screen", (("averageinblink", "zero"),)),
        ),
        ("timestamp",), "ms", frame=("videoframeindex",), stimulus=("videoname", "stimulus"), zero="stimulus",
        since="trialstarttime",
    ),
    Dialect(
        "tobii",
        (("recordingtimestamp",), ("gazepointxmcsnorm",), ("gazepointxmcspx",), ("eyetrackertimestamp",),
         ("presentedmedianame",), ("leftgazepointondisplayareax",)),
        (*_TOBII, _pair("left|rightgazepointondisplayarea*", "normalised", "top", "screen",
                        (("leftgazepointvalidity", "true"), ("rightgazepointvalidity", "true")))),
        ("recordingtimestamp", "systemtimestamp", "devicetimestamp", "eyetrackertimestamp"),
        stimulus=("presentedmedianame", "medianame", "presentedstimulusname"), zero="stimulus",
        rows=("sensor", "eyetracker"),
        screen=(("recordingresolutionwidth", "recordingresolutionheight"),
                ("recordingmediawidth", "recordingmediaheight")),
        media=(("presentedmediapositionx", "presentedmediapositiony", "presentedmediawidth",
                "presentedmediaheight"), ("mediaposx", "mediaposy", "mediawidth", "mediaheight")),
    ),
    Dialect(
        "pupil",
        (("onsurf",), ("onsrf",), ("worldtimestamp", "xnorm"), ("gazetimestamp", "xnorm"), ("worldindex", "xnorm"),
         ("worldframeidx", "xnorm")),
        (_pair("*norm", "normalised", "bottom"), _pair("normpos*", "normalised", "bottom")),
        ("gazetimestamp", "eyetimestamp", "worldtimestamp"), "s",
    ),
    Dialect(
        "pupil", (("normposx",),),
        (_pair("normpos*", "normalised", "bottom"),),
        _PUPIL_TIME, None, frame=("worldindex", "startframeindex"), duration=("duration",),
    ),
    Dialect(
        "neon", (("gazedetectedinreferenceimage",), ("fixationdetectedinreferenceimage",)),
        (_pair("gazepositioninreferenceimage*px", "pixels", "top", "screen"),
         _pair("fixation*px", "pixels", "top", "screen")),
        ("timestamp", "starttimestamp"), "ns", duration=("duration",),
    ),
    Dialect(
        "neon", (("timestamp", "gazexpx"), ("starttimestamp", "fixationxpx"), ("gazedetectedonsurface",),
                 ("fixationdetectedonsurface",)),
        (_pair("gazepositiononsurface*normalized", "normalised"), _pair("fixation*normalized", "normalised"),
         _pair("gaze*px", "pixels"), _pair("fixation*px", "pixels")),
        ("timestamp", "starttimestamp"), "ns", duration=("duration",),
    ),
    Dialect(
        "gazepoint", (("fpogx",), ("bpogx",)),
        (_pair("fpog*", "normalised", "top", "screen", (("fpogv", "true"),)),
         _pair("bpog*", "normalised", "top", "screen", (("bpogv", "true"),))),
        ("time",), "s", stimulus=("medianame", "mediaid"), zero="stimulus", events=("fpogid", "fpogs", "fpogd"),
        duration_unit="s",
    ),
    Dialect(
        "smi",
        (("type", "lporxpx"), ("type", "rporxpx"), ("type", "bporxpx"), ("pointofregardrightxpx",),
         ("pointofregardleftxpx",), ("pointofregardbinocularxpx",), ("fixationpositionxpx",)),
        (_pair("bpor*px", "pixels", "top", "screen"),
         Source(("lporxpx", "rporxpx"), ("lporypx", "rporypx"), "pixels", "top", "screen"),
         _pair("pointofregardbinocular*px", "pixels", "top", "screen"),
         _pair("pointofregardleft|right*px", "pixels", "top", "screen"),
         _pair("fixationposition*px", "pixels", "top", "screen")),
        ("time", "recordingtime", "timeofday", "eventstarttrialtime", "eventstart"), "us",
        duration=("eventduration",), stimulus=("stimulus",), zero="stimulus", rows=("type", "smp"),
    ),
)  # fmt: skip

PLAIN = Dialect(
    "plain", (),
    (
        _pair("*uprightnorm", "normalised"),
        *(_pair(name, "normalised") for name in ("*norm", "gaze*norm", "norm*")),
        _pair("normpos*", "normalised", "bottom"),
        *(_pair(f"{name}px", "pixels") for name in ("gaze*", "bpor*", "lpor*", "rpor*", "*", "gazeposition*")),
        _pair("*pixels", "pixels"),
        *(Source((f"yaw{u}",), (f"pitch{u}",), "radians") for u in ("radscpf", "rads", "rad")),
        Source(("azimuthrad",), ("elevationrad",), "radians"),
        *(Source((f"{x}deg",), (f"{y}deg",), "degrees")
          for x, y in (("azimuth", "elevation"), ("yaw", "pitch"), ("x", "y"))),
        *(_pair(name, None) for name in ("*", "gaze*", "por*", "fixation*", "pos*")),
        # Vergence files have a yaw for each eye: the mean is the direction of both.
        *(Source(("leftyawradscpf", "rightyawradscpf"), pitch, "radians")
          for pitch in (("leftpitchradscpf", "rightpitchradscpf"), ("pitchradscpf",))),
    ),
    ("trackingtimestamp", "canonicaltimestamp", "videotimestamp", "gazetimestamp", "timestamps", "timestamp",
     "recordingtimestamp", "time", "t", "start", "onset"),
    frame=("frame", "frameindex", "frameid", "framenumber", "frameno", "framenr", "videoframe", "worldindex"),
    duration=("duration",), duration_unit=None, stimulus=("video", "videoname", "stimulus", "medianame", "clip"),
)  # fmt: skip

#: How Tobii's names of screen and media columns may end.
SYSTEMS = ("", "px", "dacspx", "adcspx")
OBSERVERS = (
    "observer", "subject", "participant", "participantid", "participantname", "user", "wearerid",
    "recordingsessionlabel", "sessionid", "recordingname",
)  # fmt: skip
#: Columns that name an eye's movement.
MOVEMENTS = (
    "gazetype", "eyemovementtype", "eyemovement", "movementtype", "gazeeventtype", "eventtype", "beventinfo",
    "leventinfo", "reventinfo", "categorybinocular", "categoryleft", "categoryright", "category",
)  # fmt: skip
#: Columns that say "this is no gaze", in any table: rule, and what a row that fails it is counted as.
CHECKS: Mapping[str, tuple[str, str]] = {
    "confidence": ("confidence", "low confidence"),
    **dict.fromkeys(
        ("onsurf", "onsrf", "onsurface", "gazedetectedonsurface", "fixationdetectedonsurface",
         "gazedetectedinreferenceimage", "fixationdetectedinreferenceimage"), ("true", "off the surface")),
    "worn": ("true", "not worn"),
    "valid": ("true", "not valid"), "isvalid": ("true", "not valid"), "tracked": ("true", "not valid"),
    "validity": ("validity", "not valid"), "invalid": ("zero", "not valid"),
    "blink": ("zero", "blink"), "isblink": ("zero", "blink"), "inblink": ("zero", "blink"),
    "blinkid": ("empty", "blink"),
    "fpogv": ("true", "not valid"),
    "leftinsaccade": ("zero", "saccade"), "rightinsaccade": ("zero", "saccade"),
    "averageinsaccade": ("zero", "saccade"), "fixationid": ("filled", "not in a fixation"),
}  # fmt: skip


def recognise(sheet: Sheet, tracker: str) -> tuple[Dialect, Source]:
    """Return whose table this is and how it gives the point of gaze.

    Raises:
        DataError: there is no pair of coordinates of this tracker, or of any.
    """
    for dialect in (*DIALECTS, PLAIN):
        told = dialect is PLAIN or any(all(name in sheet.keys for name in mark) for mark in dialect.marks)
        if tracker != dialect.tracker and (tracker != "auto" or not told):
            continue
        for source in dialect.sources:
            eyes = [
                k for k in range(len(source.x)) if source.x[k] in sheet.keys and _y(source, k) in sheet.keys
            ]
            if eyes and (len(eyes) == len(source.x) or "gaze" in source.x[0] or "por" in source.x[0]):
                valid = (
                    source.valid
                    if len(source.x) == 1
                    else tuple(source.valid[k] for k in eyes if source.valid)
                )
                x, y = tuple(source.x[k] for k in eyes), tuple(dict.fromkeys(_y(source, k) for k in eyes))
                return dialect, Source(x, y, source.unit, source.origin, source.on, valid)
    raise DataError(
        f"{sheet.path}: no pair of gaze coordinates {f'of {tracker} ' if tracker != 'auto' else ''}among the columns "
        f"{', '.join(sheet.header)}; name them: columns={{'x': …, 'y': …}}."
    )


def _y(source: Source, eye: int) -> str:
    return source.y[min(eye, len(source.y) - 1)]


def _keys() -> frozenset[str]:
    """Return the keys of all columns that any dialect reads."""
    found = {*OBSERVERS, *MOVEMENTS, *CHECKS, "depthm"}
    for d in (*DIALECTS, PLAIN):
        found |= {
            *d.time,
            *d.frame,
            *d.duration,
            *d.stimulus,
            *(d.events or ()),
            *(d.rows or ()),
            d.since or "time",
        }
        found |= {name for mark in d.marks for name in mark}
        found |= {name for s in d.sources for name in (*s.x, *s.y, *(column for column, _ in s.valid))}
        stems = [name for pair in (*d.screen, *d.media) for name in pair]
        found |= {name + system for name in stems for system in SYSTEMS}
    return frozenset(found)


#: Columns that are kept of a file.
KEYS = _keys()
