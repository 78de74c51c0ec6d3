"""Renderer of the demo videos: an animated portrait.

scikit-image's `astronaut` (NASA, public domain) is cut out along constants measured once on that picture,
gets a depth, and is rotated in 3D. `turned` traces each pixel's ray to the solid head for a grid of angles,
once per process; `draw` only interpolates those maps, so that a frame takes milliseconds. `Looks` makes
different subjects from the one portrait.

Coordinates: `source` pixels are those of the 512 × 512 portrait; head coordinates are source units around
the neck joint, x to the right, y up, z towards the camera, so that angles follow extract/face/geometry.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from features.cli import UserError

WIDTH, HEIGHT = 320, 240

WINDOW = (132, 0, 324, 196)
"""x0, y0, x1, y1 of the head with a margin, source pixels."""
JOINT = (226.0, 152.0, -48.0)
"""Centre of the head's rotation: column and row in source pixels, and depth behind the eyes."""
DETAIL = 2
"""Texture pixels per source pixel."""
JOINT_ROW = 0.70
"""Row of the joint in the frame, as a fraction of its height from the top."""
TORSO_TOP = 110
"""The torso is always below this row of the frame."""
MAP_STEP = 2.0
"""Source units per cell of the maps of a rotated head."""
MAP_BOX = (-112.0, -62.0, 112.0, 168.0)
"""x0, y0, x1, y1 of the area of those maps, head coordinates."""
YAWS_DEG = np.linspace(-56, 56, 9)
PITCHES_DEG = np.linspace(-40, 24, 6)
"""The grid of angles; `draw` interpolates between them."""
CLOSED_LEVELS = (0.0, 0.4, 0.75, 1.0)
GAZE_PX = 2.6
"""Maximum horizontal shift of the irises, source pixels."""

OUTLINE = np.array(
    "232 15 250 19 266 26 280 36 290 46 297 60 300 80 299 95 295 108 288 119 280 127 277 132 271 136 267 137 "
    "265 144 261 153 256 160 250 166 243 171 236 175 229 178 221 178 212 176 205 172 199 168 194 163 189 156 "
    "185 149 182 140 181 132 176 131 171 124 169 117 160 111 155 100 154 85 153 72 155 60 162 51 172 43 186 "
    "37 193 28 204 21 216 16".split(),
    np.float32,
).reshape(-1, 2)
"""Hair, ears and chin, source pixels."""
PULLOVER = np.array(
    "-37 33 -62 43 -118 62 -150 120 -150 200 150 200 150 120 118 62 62 43 37 33 20 44 0 48 -20 44".split(),
    np.float32,
).reshape(-1, 2)
COLLAR = np.array("-38 33 -20 45 0 49 20 45 38 33".split(), np.float32).reshape(-1, 2)
NECK = np.array("-34 -30 34 -30 36 24 60 60 -60 60 -36 24".split(), np.float32).reshape(-1, 2)
"""Outline below the head, source units to the right of the joint and below it."""
FACE_OVAL = (225.5, 121.0, 45.5, 58.0)
"""Centre column, centre row, half width, half height of the face inside the hair."""

# Upper and lower lid (column, row) from one corner to the other: first the left eye in the picture.
LIDS = (
    (
        ((195.3, 100.6), (199.2, 98.2), (202.6, 97.8), (206.1, 98.4), (209.7, 100.1), (213.6, 103.6)),
        ((195.3, 100.6), (198.3, 102.9), (200.7, 103.7), (204.2, 104.2), (210.8, 103.8), (213.6, 103.6)),
    ),
    (
        ((236.4, 104.9), (240.6, 101.7), (244.3, 100.3), (248.1, 100.2), (251.4, 101.0), (255.3, 103.8)),
        ((236.4, 104.9), (239.2, 105.4), (242.3, 106.0), (245.9, 106.5), (252.0, 105.8), (255.3, 103.8)),
    ),
)


@dataclass(frozen=True)
class Looks:
    """The appearance of a synthetic subject."""

    mirror: bool
    skin: tuple[float, float, float]
    """Gains of red, green and blue inside the face."""
    hair: tuple[float, float, float]
    """Gains of red, green and blue outside it."""
    cloth: tuple[int, int, int]
    """RGB of the clothes."""
    wall: tuple[int, int, int]
    """RGB of the wall in the background."""
    light: tuple[float, float]
    """Brightness gradient to the right and to the bottom, -1 to 1."""
    gamma: float
    width: float
    jaw: float
    nose: float
    eyes: float
    smile: float
    """Width to smile are mild warps; 1 (0 for `smile`) does not change the portrait."""
    glasses: bool
    zoom: float
    """Frame pixels per source pixel."""
    seed: int
    """Random seed of the shapes on the wall."""


@dataclass(frozen=True)
class Pose:
    """Pose of a head in one frame. Angles in degrees, as in extract/face/geometry.py."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    closed: float = 0.0
    """Eye closure: 0 = open, 1 = closed."""
    gaze: float = 0.0
    """-1 = to the left edge of the image, 1 = to the right edge."""
    x: float = 0.0
    y: float = 0.0
    """Shift of the body to the right and up, source units."""
    glow: float = 1.0
    """Brightness of the frame; 1 = unchanged."""


@dataclass(frozen=True)
class RenderedFace:
    """A subject ready to draw: RGB textures by eye state, RGBA torso, shade (128 = unchanged), noise."""

    looks: Looks
    faces: dict[tuple[float, int], np.ndarray]
    torso: np.ndarray
    wall: np.ndarray
    shade: np.ndarray
    grain: np.ndarray
    rooms: dict[tuple[int, int], np.ndarray]
    """The last picture without the head, by torso position."""


def make_face(looks: Looks) -> RenderedFace:
    """The textures of a subject with this appearance."""
    rng = np.random.default_rng(looks.seed)
    portrait, grid = _portrait(), _face_warp(looks)
    faces = {
        (closed, gaze): _texture(portrait, looks, closed, gaze, grid)
        for closed in CLOSED_LEVELS
        for gaze in ((-1, 0, 1) if closed == 0 else (0,))
    }
    grain = np.clip(rng.normal(5, 1.6, (8, HEIGHT, WIDTH, 3)), 0, 10).astype(np.uint8)
    return RenderedFace(
        looks, faces, _torso(looks, portrait, rng), _wall(looks, rng), _shade(looks), grain, {}
    )


def draw(rendered: RenderedFace, pose: Pose, tick: int = 0) -> np.ndarray:
    """One frame, RGB uint8 (240,320,3). tick: frame index, selects the camera noise."""
    looks = rendered.looks
    side = -1.0 if looks.mirror else 1.0
    column, row = WIDTH / 2 + looks.zoom * pose.x, HEIGHT * JOINT_ROW - looks.zoom * pose.y
    frame = _room(rendered, column - WIDTH / 2, row - HEIGHT * JOINT_ROW)
    # Frame pixel -> map cell: around the joint, unroll, scale (and mirror), rows growing downwards.
    roll, scale = np.deg2rad(pose.roll), 1 / (looks.zoom * MAP_STEP)
    unroll = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    turn = np.diag([scale * side / looks.width, scale]) @ unroll
    joint = np.array([-MAP_BOX[0], MAP_BOX[3]]) / MAP_STEP
    corners = np.array([[-108, -166], [108, 62]]) * looks.zoom + (column, row)
    (left, top), (right, bottom) = np.clip(np.round(corners), 0, (WIDTH, HEIGHT)).astype(int)
    if left < right and top < bottom:
        affine = np.column_stack([turn, joint - turn @ (column - left, row - top)])
        spread = _between(head_maps(), side * pose.yaw, pose.pitch)
        size, flags = (right - left, bottom - top), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cell_x, cell_y, cover = cv2.split(cv2.warpAffine(spread, affine, size, flags=flags))
        closed = min(CLOSED_LEVELS, key=lambda known: abs(known - pose.closed))
        texture = rendered.faces[closed, 0 if closed else int(np.clip(round(side * pose.gaze), -1, 1))]
        face = cv2.remap(texture, cell_x, cell_y, cv2.INTER_LINEAR)
        _blend(frame[top:bottom, left:right], face, np.clip((cover - 0.35) * 3.3, 0, 1))
    # The room's light, and the camera's noise.
    frame = cv2.multiply(frame, rendered.shade, scale=pose.glow / 128)
    return np.asarray(cv2.add(frame, rendered.grain[tick % len(rendered.grain)]))


def _room(rendered: RenderedFace, right_px: float, down_px: float) -> np.ndarray:
    """The wall and the torso, shifted in steps of half a pixel; an unchanged position is not drawn again."""
    step = (round(2 * right_px), round(2 * down_px))
    if step not in rendered.rooms:
        rendered.rooms.clear()
        frame = rendered.rooms[step] = rendered.wall.copy()
        shift = np.array([[1, 0, step[0] / 2], [0, 1, step[1] / 2]], np.float32)
        torso = cv2.warpAffine(rendered.torso, shift, (WIDTH, HEIGHT - TORSO_TOP))
        alpha = torso[..., 3] * np.float32(1 / 255)
        _blend(frame[TORSO_TOP:], cv2.cvtColor(torso, cv2.COLOR_RGBA2RGB), alpha)
    return rendered.rooms[step].copy()


@lru_cache(maxsize=1)
def head_maps() -> np.ndarray:
    """`turned` at each of `YAWS_DEG` and `PITCHES_DEG`: float32 (yaws, pitches, rows, columns, 3)."""
    depth, back = _depths()
    return np.stack([[turned(depth, back, yaw, pitch) for pitch in PITCHES_DEG] for yaw in YAWS_DEG])


def turned(depth: np.ndarray, back: np.ndarray, yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """Intersections of a grid of rays over `MAP_BOX` with the rotated head: float32 (rows, columns, 3).

    depth, back: float32 (rows, columns), the front and the rear surface over `WINDOW`. The first two channels
    are texture pixels, extended past the outline; the third is 1 on the head and 0 outside.
    """
    yaw, pitch = np.deg2rad(yaw_deg), np.deg2rad(pitch_deg)
    x0, y0, x1, y1 = MAP_BOX
    u, v = np.meshgrid(
        np.arange(x0, x1, MAP_STEP, dtype=np.float32), np.arange(y1, y0, -MAP_STEP, dtype=np.float32)
    )
    rot_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    rot_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    unturn = (rot_y @ rot_x).T.astype(np.float32)
    out = np.zeros((*u.shape, 3), np.float32)
    flat, rays = out.reshape(-1, 3), np.arange(u.size)
    x, y = u.reshape(-1), v.reshape(-1)
    for z in np.arange(115.0, -115.0, -2.5, dtype=np.float32):
        px, py, pz = (axis[0] * x + axis[1] * y + axis[2] * z for axis in unturn)
        columns, rows = px + (JOINT[0] - WINDOW[0]), (JOINT[1] - WINDOW[1]) - py
        cell_x = np.clip(columns, 0, depth.shape[1] - 1).astype(np.intp)
        cell_y = np.clip(rows, 0, depth.shape[0] - 1).astype(np.intp)
        level = pz + JOINT[2]
        hit = (level <= depth[cell_y, cell_x]) & (level >= back[cell_y, cell_x])
        flat[rays[hit]] = np.stack([columns[hit] * DETAIL, rows[hit] * DETAIL, np.ones(hit.sum())], 1)
        rays, x, y = rays[~hit], x[~hit], y[~hit]
    # Extend the values, so that interpolation between cells never uses empty cells.
    _continue(out[..., :2], out[..., 2].copy(), sizes=[5] * 6)
    out[..., 2] = cv2.GaussianBlur(out[..., 2], (3, 3), 0)
    return out


def _between(maps: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """The map at these angles, interpolated bilinearly in the grid of angles."""
    i, j = (
        float(np.clip(np.interp(angle, grid, np.arange(len(grid))), 0, len(grid) - 1.001))
        for angle, grid in ((yaw, YAWS_DEG), (pitch, PITCHES_DEG))
    )
    a, b = int(i), int(j)
    left, right = (cv2.addWeighted(m[b], 1 - (j - b), m[b + 1], j - b, 0) for m in (maps[a], maps[a + 1]))
    return cv2.addWeighted(left, 1 - (i - a), right, i - a, 0)


def _blend(under: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> None:
    """Lay `over` on `under` in place by `alpha` float32 (H,W), 0 to 1."""
    under[:] = cv2.blendLinear(over, np.ascontiguousarray(under), alpha, 1 - alpha)


def _continue(values: np.ndarray, weight: np.ndarray, sizes: Sequence[int]) -> None:
    """Extend values (H,W,C) in place from pixels with weight (H,W) 1 to pixels with weight 0 (value 0).

    sizes: blur sizes, one per round; each round extends the values as far as its blur reaches.
    """
    for size in sizes:
        near, share = cv2.blur(values, (size, size)), cv2.blur(weight, (size, size))
        empty = (weight == 0) & (share > 1e-3)
        values[empty] = near[empty] / share[empty, None]
        weight[empty] = 1


def _from_oval(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Distance of source pixels from the centre of the face oval; 1 on the oval."""
    cx, cy, half_w, half_h = FACE_OVAL
    return np.hypot((columns - cx) / half_w, (rows - cy) / half_h)


def _step(x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 to 1 around x = 0."""
    return 0.5 + 0.5 * np.tanh(x / 2)


def _portrait() -> np.ndarray:
    # Find the file without importing scikit-image, which takes a second.
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo set needs scikit-image's portrait: pip install scikit-image")
    data = np.fromfile(Path(spec.submodule_search_locations[0]) / "data" / "astronaut.png", np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    return np.asarray(picture)[: WINDOW[3] + 4]  # rows below are not used


def _face_warp(looks: Looks) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows) float32: position in the unwarped portrait for each texture pixel of this subject."""
    x0, y0, x1, y1 = WINDOW
    column, row = np.meshgrid(
        np.arange(x0, x1, 1 / DETAIL, dtype=np.float32), np.arange(y0, y1, 1 / DETAIL, dtype=np.float32)
    )

    def bump(x: float, y: float, rx: float, ry: float) -> np.ndarray:
        return np.exp(-(((column - x) / rx) ** 2) - ((row - y) / ry) ** 2)

    jaw = 1 + (looks.jaw - 1) * _step((row - 140) / 9)
    out_x, out_y = FACE_OVAL[0] + (column - FACE_OVAL[0]) / jaw, row.copy()
    for x, y, rx, ry, size in (
        (204, 101, 15, 10, looks.eyes),
        (246, 103, 15, 10, looks.eyes),
        (223.5, 124, 13, 14, looks.nose),
    ):
        pull = (1 - 1 / size) * bump(x, y, rx, ry)
        out_x -= (out_x - x) * pull
        out_y -= (out_y - y) * pull
    out_y += looks.smile * bump(223, 146, 26, 14) * (((column - 223) / 21) ** 2 - 0.6) * 4
    return out_x.astype(np.float32), out_y.astype(np.float32)


def _texture(
    portrait: np.ndarray, looks: Looks, closed: float, gaze: int, grid: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """The head's texture for one eye state, RGB uint8, coloured, extended past its outline."""
    outline = np.zeros(portrait.shape[:2], np.uint8)
    cv2.fillPoly(outline, [np.round(OUTLINE).astype(np.int32)], 1)
    inside = cv2.erode(outline, np.ones((7, 7), np.uint8)).astype(np.float32)
    spread = _with_eyes(portrait, closed, gaze) * inside[..., None]
    # Outside the outline: the blurred colour of the nearest part of the head.
    _continue(spread, inside, sizes=(5, 9, 17, 33))
    rows, columns = np.mgrid[: portrait.shape[0], : portrait.shape[1]].astype(np.float32)
    # Skin is bright and inside the oval; hair and eyebrows are darker.
    skin = _step((1.02 - _from_oval(columns, rows)) * 22) * np.clip((spread.mean(2) - 95) / 40, 0, 1)
    skin = cv2.GaussianBlur(skin, (0, 0), 1.2)[..., None]
    tint = skin * np.array(looks.skin, np.float32) + (1 - skin) * np.array(looks.hair, np.float32)
    tinted = np.clip(spread * tint, 0, 255).astype(np.uint8)
    if looks.glasses:
        tinted = _with_glasses(tinted)
    curve = (255 * (np.arange(256) / 255) ** looks.gamma).astype(np.uint8)
    return cv2.LUT(cv2.remap(tinted, *grid, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), curve)


def _with_eyes(portrait: np.ndarray, closed: float, gaze: int) -> np.ndarray:
    """The portrait with the upper lids lowered by `closed` and the irises shifted by `gaze`."""
    rows, columns = np.mgrid[: portrait.shape[0], : portrait.shape[1]].astype(np.float32)
    x, from_x, from_y = columns[0], columns.copy(), rows.copy()
    for upper_points, lower_points in LIDS:
        (xs, upper_y), (lower_x, lower_y) = np.transpose(upper_points), np.transpose(lower_points)
        middle, half = (xs[0] + xs[-1]) / 2, (xs[-1] - xs[0]) / 2
        from_middle = np.abs(x - middle) / half
        near = (np.clip(1.35 - from_middle, 0, 0.35) / 0.35).astype(np.float32)
        upper, lower = np.interp(x, xs, upper_y), np.interp(x, lower_x, lower_y)
        drop = closed * np.maximum(lower - upper, 0.6) * near
        brow = upper - 6.5
        lid = (rows >= brow) & (rows <= upper + drop) & (near > 0)
        squeezed = brow + (rows - brow) * (upper - brow) / np.maximum(upper + drop - brow, 1)
        from_y = np.where(lid, squeezed, from_y)
        opening = np.clip(1.15 - from_middle, 0, 1) * ((rows > upper + 0.3) & (rows < lower - 0.3))
        from_x -= (gaze * GAZE_PX * opening).astype(np.float32)
    return cv2.remap(portrait, from_x.astype(np.float32), from_y.astype(np.float32), cv2.INTER_CUBIC)


def _with_glasses(picture: np.ndarray) -> np.ndarray:
    out, colour = picture.copy(), (38, 32, 34)
    for x, y in ((204, 102), (246, 104)):
        cv2.ellipse(out, (x * 16, y * 16), (15 * 16, 11 * 16), 0, 0, 360, colour, 2, cv2.LINE_AA, 4)
    for start, end in (((219, 101), (231, 102)), ((189, 100), (176, 97)), ((261, 102), (275, 99))):
        cv2.line(out, start, end, colour, 2, cv2.LINE_AA)
    return out


def _depths() -> tuple[np.ndarray, np.ndarray]:
    """(front, rear) surface of the head over `WINDOW`, float32; -999 and 999 outside the head.

    The face polynomial is a least-squares fit to MediaPipe's 468 points on the portrait (error 4 units).
    """
    rows, columns = np.mgrid[:512, :512].astype(np.float32)
    x, y = (columns - 224) / 45, (rows - 115) / 55
    face = (
        3.9
        - 3 * y
        - 5.3 * x**2
        - 2.4 * y**2
        - 17.4 * x**2 * y
        - 28.3 * x**4
        + 3.5 * y**4
        - 8.7 * y**3
        + 21.5 * np.exp(-(((columns - 223.5) / 12) ** 2) - ((rows - 126) / 14) ** 2)
    )
    mask = np.zeros((512, 512), np.uint8)
    cv2.fillPoly(mask, [np.round(OUTLINE * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    inner = np.clip(cv2.distanceTransform(mask, cv2.DIST_L2, 5) / 38, 0, 1)
    round_off = np.sqrt(np.clip(1 - (1 - inner) ** 2, 0, 1))
    share = _step((0.97 - _from_oval(columns, rows)) * 16)
    front = share * np.maximum(face, -55) + (1 - share) * (-70 + 66 * round_off)
    # The edge of the chin is thin: only the neck is behind the jaw.
    front = cv2.GaussianBlur(front.astype(np.float32), (0, 0), 1.5)
    rear = -72 - 38 * round_off * np.clip((175 - rows) / 60, 0, 1)
    rear = np.maximum(rear, np.where(rows > 140, -60, -999))
    front[mask == 0], rear[mask == 0] = -999, 999
    x0, y0, x1, y1 = WINDOW
    return front[y0:y1, x0:x1].astype(np.float32), rear[y0:y1, x0:x1].astype(np.float32)


def _torso(looks: Looks, portrait: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Neck and shoulders in a plain pullover, RGBA uint8, from row TORSO_TOP down, centred."""
    out, cloth = _neck(looks, portrait), _pullover(looks, rng)
    alpha = cloth[..., 3:].astype(np.float32) / 255
    out[..., :3] = out[..., :3] * (1 - alpha) + cloth[..., :3] * alpha
    out[..., 3] = np.maximum(out[..., 3], cloth[..., 3])
    return np.ascontiguousarray(out[TORSO_TOP:])


def _neck(looks: Looks, portrait: np.ndarray) -> np.ndarray:
    """The neck with the shadow of the chin, RGBA uint8 (240,320,4)."""
    out = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    skin = portrait[160:172, 215:232].reshape(-1, 3).mean(0) * np.array(looks.skin) * 0.82
    skin = 255 * (np.clip(skin, 0, 255) / 255) ** looks.gamma
    cv2.fillPoly(out, [_in_frame(NECK, looks.zoom)], (*skin.tolist(), 255), cv2.LINE_AA, 4)
    down = (np.arange(HEIGHT) - HEIGHT * JOINT_ROW) / looks.zoom
    shadow = np.exp(-((down - 16) ** 2) / 160).astype(np.float32) * 0.4
    out[..., :3] = (out[..., :3] * (1 - shadow)[:, None, None]).astype(np.uint8)
    return out


def _pullover(looks: Looks, rng: np.random.Generator) -> np.ndarray:
    """A pullover with folds and a darker collar, RGBA uint8 (240,320,4)."""
    cloth = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    cv2.fillPoly(cloth, [_in_frame(PULLOVER, looks.zoom)], (*looks.cloth, 255), cv2.LINE_AA, 4)
    folds = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 9)
    folds = 1 + 0.10 * folds / folds.std()
    cloth[..., :3] = np.clip(cloth[..., :3] * folds[..., None], 0, 255)
    collar, dark = _in_frame(COLLAR, looks.zoom), (*(int(c * 0.7) for c in looks.cloth), 255)
    cv2.polylines(cloth, [collar], False, dark, round(5 * looks.zoom), cv2.LINE_AA, 4)
    return cloth


def _in_frame(points: np.ndarray, zoom: float) -> np.ndarray:
    """Points relative to the joint as int32 in 1/16 pixels of the frame, the fixed-point format of OpenCV."""
    return np.round((points * zoom + np.array([WIDTH / 2, HEIGHT * JOINT_ROW])) * 16).astype(np.int32)


def _wall(looks: Looks, rng: np.random.Generator) -> np.ndarray:
    """A blurred wall, RGB uint8 (240,320,3)."""
    wall = np.full((HEIGHT, WIDTH, 3), looks.wall, np.float32)
    for _ in range(int(rng.integers(3, 8))):
        x, y = int(rng.integers(-40, WIDTH)), int(rng.integers(-40, HEIGHT))
        w, h = int(rng.integers(20, 130)), int(rng.integers(20, 160))
        colour = np.clip(np.array(looks.wall) * rng.uniform(0.5, 1.35) + rng.normal(0, 18, 3), 0, 255)
        cv2.rectangle(wall, (x, y), (x + w, y + h), colour.tolist(), -1)
    return np.clip(cv2.GaussianBlur(wall, (0, 0), float(rng.uniform(2.5, 6))), 0, 255).astype(np.uint8)


def _shade(looks: Looks) -> np.ndarray:
    """The brightness of the picture, uint8 (240,320,3); 128 = unchanged."""
    across, down = looks.light
    x = np.linspace(-1, 1, WIDTH)[None, :, None]
    y = np.linspace(-1, 1, HEIGHT)[:, None, None]
    return np.clip(128 * (1 + 0.45 * across * x + 0.3 * down * y) * np.ones(3), 0, 255).astype(np.uint8)
