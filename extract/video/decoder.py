"""Packets to pictures: opening a container, decoding no more than is needed, passing over what is damaged."""

import contextlib
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

IsWanted = Callable[[float, float], bool]
"""Whether a picture at the second time, the next one after the first, may be asked for (seconds)."""

LOOKAHEAD = 32
"""Packets whose times are known before one is decoded; pictures are reordered over 16 at most."""
LAST_PACKETS = 6
"""The end of a file is decoded in full, so that where it ends is known."""

FLUSH_PACKETS_WITHOUT_FRAME = 2000
"""A decoder that is fed this many packets in a row and gives no picture will not give one."""
RESTART_S = 0.5
"""A packet this much before the one it follows belongs to another recording, joined to the first by `cat`."""


def open_video(path: Path | str) -> "av.container.InputContainer":
    """The container of a file or URL, with a video stream that can be decoded; to be closed.

    Raises ValueError with a reason for people where there is none.
    """
    import av

    address = str(path)
    if isinstance(path, Path) or "://" not in path:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        if Path(path).stat().st_size == 0:
            raise ValueError(f"{path}: the file is empty (0 bytes)")
        address = str(Path(path).absolute())  # FFmpeg takes the `a` of a relative `a:b.mp4` for a protocol
    try:
        container = av.open(address, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: not a video that can be read ({_reason(error)})") from error
    reason = "" if container.streams.video else "holds no video (audio only?)"
    if not reason and video_stream(container).codec_context is None:
        reason = "its codec is not known"
    if reason:
        container.close()
        raise ValueError(f"{path}: {reason}")
    return container


def video_stream(container: "av.container.InputContainer") -> "av.VideoStream":
    """The video track that players show: not a cover picture, and the default track where there are several.
    The container has one at least."""
    from av.stream import Disposition

    tracks = container.streams.video
    moving = [track for track in tracks if Disposition.attached_pic not in track.disposition]
    return next(
        (track for track in moving if Disposition.default in track.disposition), (moving or tracks)[0]
    )


def pictures(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    path: str,
    is_wanted: IsWanted | None,
) -> Iterator["av.VideoFrame"]:
    """Decoded pictures; damaged packets are passed over, and a stream that gives nothing is an error."""
    import av

    num_pictures, fruitless = 0, 0
    reasons = ["no frame in it can be decoded"]
    context = stream.codec_context
    for packet, is_needed in _marked(_packets(container, stream, reasons), stream, is_wanted):
        if not is_needed and context.codec.intra_only:
            continue
        if is_wanted is not None:
            context.skip_frame = "DEFAULT" if is_needed else "NONREF"
        try:
            pictures = stream.decode(packet)
        except av.error.EOFError:
            break
        except av.error.FFmpegError as error:
            reasons.append(_reason(error))
            pictures = []
        for picture in pictures:
            num_pictures += 1
            yield picture
        fruitless = 0 if pictures else fruitless + 1
        if fruitless > FLUSH_PACKETS_WITHOUT_FRAME:
            break
    if num_pictures == 0:
        raise ValueError(f"{path}: {reasons[-1]}")


def _packets(
    container: "av.container.InputContainer", stream: "av.VideoStream", reasons: list[str]
) -> "Iterator[av.Packet]":
    """The stream's packets, then the empty one that makes the decoder give the pictures it holds back.

    Where their times start again (recordings joined by `cat`), they go on from where they were.
    """
    import av

    time_base = float(stream.time_base or 1)
    restart, one_picture = round(RESTART_S / time_base), round(1 / (rate(stream) * time_base))
    offset, next_dts = 0, None
    try:
        for packet in container.demux(stream):
            if packet.dts is not None:
                if next_dts is not None and packet.dts + offset < next_dts - restart:
                    offset = next_dts - packet.dts
                next_dts = packet.dts + offset + (packet.duration or one_picture)
            if offset and packet.dts is not None:
                packet.dts += offset
            if offset and packet.pts is not None:
                packet.pts += offset
            yield packet
    except av.error.FFmpegError as error:  # the container is broken here: what was read is decoded
        reasons.append(_reason(error))
        yield av.Packet()


def _marked(
    packets: "Iterator[av.Packet]", stream: "av.VideoStream", is_wanted: IsWanted | None
) -> Iterator[tuple["av.Packet", bool]]:
    """Packets, each with whether its own picture is needed.

    A picture is, if it may be the first at or after a target; the one shown before it lies among the packets
    around it. Everything is needed where that cannot be told: no times, or two fields to a picture.
    """
    start, time_base = stream.start_time, stream.time_base
    if is_wanted is None or start is None or not time_base or stream.codec_context.field_order > 1:
        yield from ((packet, True) for packet in packets)
        return
    ahead: deque[av.Packet] = deque()
    behind: deque[int] = deque(maxlen=LOOKAHEAD)
    while True:
        ahead.extend(islice(packets, LOOKAHEAD + 1 - len(ahead)))
        if not ahead:
            return
        packet = ahead.popleft()
        pts = packet.pts
        if pts is None or len(ahead) < LAST_PACKETS:
            yield packet, True
            continue
        earlier = [other.pts for other in ahead if other.pts is not None and other.pts < pts]
        earlier += [other for other in behind if other < pts]
        behind.append(pts)
        before_s = float((max(earlier) - start) * time_base) if earlier else -math.inf
        yield packet, is_wanted(before_s, float((pts - start) * time_base))


def duration_s(container: "av.container.InputContainer", stream: "av.VideoStream") -> float:
    """Seconds from the stream's first picture to the end of its last, as the container says or promises.

    Where it does not say (Matroska), the end is read. Where times may start again (MPEG-TS), all is read,
    which costs no more than reading the file.
    """
    from av.format import Flags

    may_restart = Flags.ts_discont in Flags(container.format.flags)
    if stream.duration and stream.time_base and not may_restart:
        return float(stream.duration * stream.time_base)
    # A file that was cut off still promises its length in the tag, and so is not taken for a shorter video.
    end_s = max(_tagged_end_s(stream), last_packet_end_s(container, stream, from_start=may_restart))
    return end_s or (container.duration or 0) / 1e6  # AV_TIME_BASE, microseconds


def last_packet_end_s(
    container: "av.container.InputContainer", stream: "av.VideoStream", *, from_start: bool
) -> float:
    """Where the last picture ends, seconds from the first one's start; 0 where no packet tells.

    Unless `from_start`, reads from the last picture that can be decoded alone, where that can be found.
    """
    import av

    end, first, untimed = 0, stream.start_time, 0
    if first is not None and container.duration and stream.time_base and not from_start:
        last_s = ((container.start_time or 0) + container.duration) / 1e6  # or later: that is the end, too
        with contextlib.suppress(av.error.FFmpegError):
            container.seek(int(last_s / stream.time_base), stream=stream)
    for packet in _packets(container, stream, []):
        if packet.pts is not None:
            first = packet.pts if first is None else first
            end = max(end, packet.pts + (packet.duration or 0) - first)
        elif packet.size:
            untimed += 1
    return float(end * (stream.time_base or 0)) or untimed / rate(stream)


def rate(stream: "av.VideoStream") -> float:
    """Frames a second: the average, else a guess, else 25."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def pixel_aspect(stream: "av.VideoStream") -> float:
    """Width of a pixel divided by its height, as the container or the codec says; 1 where neither does, and
    where it is outside 1/8 to 8, which no video means."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / 8 <= aspect <= 8 else 1.0


def _tagged_end_s(stream: "av.VideoStream") -> float:
    """Where Matroska's tag says that the stream ends, seconds from its start; 0 without one."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if found is None:
        return 0.0
    hours, minutes, seconds = (float(number) for number in found.groups())
    return 3600 * hours + 60 * minutes + seconds - float((stream.start_time or 0) * (stream.time_base or 0))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().lower()
