"""Video decoding with PyAV: open a container, decode only needed pictures, skip damaged packets."""

import contextlib
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from features.cli import UserError

if TYPE_CHECKING:
    import av

IsWanted = Callable[[float, float], bool]
"""(time of the previous picture, time of a picture), seconds -> whether the picture may be sampled."""

LOOKAHEAD = 32
"""Number of packets whose times are read before one is decoded; pictures are reordered over 16 at most."""
LAST_PACKETS = 6
"""Number of packets at the end of a file that are always decoded, so that its end time is known."""

FLUSH_PACKETS_WITHOUT_FRAME = 2000
"""After this many packets in a row without a picture, decoding stops."""
NO_DATA_S = 5.0
"""An address (not a local file) that gives no data for this long has failed, seconds."""
RESTART_S = 0.5
"""A packet this many seconds before its predecessor starts another recording (files joined by `cat`)."""


def open_video(path: Path | str) -> "av.container.InputContainer":
    """Open the container of a file or URL with a decodable video stream; the caller closes it.

    Raises UserError with the reason when there is none.
    """
    import av

    address = str(path)
    timeout: float | None = NO_DATA_S
    if isinstance(path, Path) or "://" not in path:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
        if Path(path).stat().st_size == 0:
            raise UserError(f"{path}: the file is empty (0 bytes)")
        address = str(Path(path).absolute())  # FFmpeg takes the `a` of a relative `a:b.mp4` for a protocol
        timeout = None
    try:
        container = av.open(address, metadata_errors="replace", timeout=timeout)
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: not a readable video ({_reason(error)})") from error
    reason = "" if container.streams.video else "has no video stream (audio only?)"
    if not reason and video_stream(container).codec_context is None:
        reason = "its video codec is unknown"
    if reason:
        container.close()
        raise UserError(f"{path}: {reason}")
    return container


def video_stream(container: "av.container.InputContainer") -> "av.VideoStream":
    """The video track that players show: not a cover picture, and the default track where there are several.
    The container has one at least."""
    from av.stream import Disposition

    tracks = video_tracks(container)
    return next((track for track in tracks if Disposition.default in track.disposition), tracks[0])


def video_tracks(container: "av.container.InputContainer") -> "list[av.VideoStream]":
    """The video tracks that are no cover pictures; all, if there are only cover pictures."""
    from av.stream import Disposition

    tracks = container.streams.video
    return [track for track in tracks if Disposition.attached_pic not in track.disposition] or list(tracks)


def seek(container: "av.container.InputContainer", stream: "av.VideoStream", time_s: float) -> None:
    """Move to the last keyframe at or before `time_s` seconds after the first picture.

    Does nothing where a time may stand for several places (MPEG-TS, whose times may start again) or is
    unknown.
    """
    import av
    from av.format import Flags

    start, time_base, length = stream.start_time, stream.time_base, container.duration
    if time_s <= 0 or start is None or not time_base or Flags.ts_discont in Flags(container.format.flags):
        return
    if time_s > (length or 0) / 1e6:  # AV_TIME_BASE. Of joined recordings, it counts the first one.
        return
    try:
        container.seek(start + int(time_s / time_base), stream=stream)
    except av.error.FFmpegError:
        container.seek(0)


def pictures(
    container: "av.container.InputContainer",
    stream: "av.VideoStream",
    path: str,
    is_wanted: IsWanted | None,
) -> Iterator[tuple["av.VideoFrame", bool]]:
    """Yield (decoded picture, whether it may be damaged); packets that cannot be decoded are skipped.

    A picture may be damaged if its decoder says so, or if it follows such a picture (or a packet that could
    not be decoded) before the next keyframe. Raises UserError when no picture can be decoded.
    """
    import av

    num_pictures, num_without, is_damaged = 0, 0, False
    reasons = ["no frame can be decoded"]
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
            pictures, is_damaged = [], True
        for picture in pictures:
            num_pictures += 1
            is_damaged = picture.is_corrupt or (is_damaged and not picture.key_frame)
            yield picture, is_damaged
        num_without = 0 if pictures else num_without + 1
        if num_without > FLUSH_PACKETS_WITHOUT_FRAME:
            break
    if num_pictures == 0:
        raise UserError(f"{path}: {reasons[-1]}")


def _packets(
    container: "av.container.InputContainer", stream: "av.VideoStream", reasons: list[str]
) -> "Iterator[av.Packet]":
    """The stream's packets, then an empty one, which makes the decoder return its buffered pictures.

    If times start again (recordings joined by `cat`), they continue after the last one. Raises UserError
    when an address gives no more data.
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
    except av.error.ExitError as error:
        raise UserError(f"{container.name}: no data for {NO_DATA_S:g} s") from error
    except av.error.FFmpegError as error:  # the container is damaged here: decode what was read
        reasons.append(_reason(error))
        yield av.Packet()


def _marked(
    packets: "Iterator[av.Packet]", stream: "av.VideoStream", is_wanted: IsWanted | None
) -> Iterator[tuple["av.Packet", bool]]:
    """Yield (packet, whether its picture is needed).

    A picture is needed if it may be the first at or after a target time; the picture before it is found among
    the neighbouring packets. Without times, or with interlaced pictures (two fields), all are needed.
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
    """Seconds from the start of the stream's first picture to the end of its last, from the container.

    If the container does not have it (Matroska), the end of the file is read. If times may start again
    (MPEG-TS), all packets are read, which takes as long as reading the file.
    """
    from av.format import Flags

    may_restart = Flags.ts_discont in Flags(container.format.flags)
    if stream.duration and stream.time_base and not may_restart:
        return float(stream.duration * stream.time_base)
    # A truncated file still has its full length in the tag, so it does not count as a shorter video.
    end_s = max(_tagged_end_s(stream), last_packet_end_s(container, stream, from_start=may_restart))
    return end_s or (container.duration or 0) / 1e6  # AV_TIME_BASE, microseconds


def last_packet_end_s(
    container: "av.container.InputContainer", stream: "av.VideoStream", *, from_start: bool
) -> float:
    """End of the last picture, seconds from the start of the first one; 0 if unknown.

    Without `from_start`, reads from the last keyframe on, if it can be found.
    """
    import av

    end, first, untimed = 0, stream.start_time, 0
    if first is not None and container.duration and stream.time_base and not from_start:
        last_s = ((container.start_time or 0) + container.duration) / 1e6  # a later time seeks to the end too
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
    """Frames per second: the average, else FFmpeg's guess, else 25."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def _tagged_end_s(stream: "av.VideoStream") -> float:
    """End of the stream from Matroska's DURATION tag, seconds from its start; 0 without the tag."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if found is None:
        return 0.0
    hours, minutes, seconds = (float(number) for number in found.groups())
    return 3600 * hours + 60 * minutes + seconds - float((stream.start_time or 0) * (stream.time_base or 0))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().lower()
