"""Photo of a flag: background, waving cloth, occlusions and camera.

Everything here is random in the same way for every crew, so only the emblem tells the crews apart.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from jobs.flags.emblems import stencil

Colour = tuple[int, int, int]
Range = tuple[float, float]
Rng = np.random.Generator

ASPECT = 1.5  # width of a flag / its height
DAY, DAWN, WATER, WOOD = (0.5, 0.65), (-0.1, 0.14), (0.42, 0.66), (0.04, 0.12)  # hues
CELLS = 12  # the warp is exact at the corners of CELLS x CELLS cells, bilinear within them


def draw_scene(crew: str, rng: Rng, size: int) -> Image.Image:
    """Draw a crew's flag at sea: size x size, RGB."""
    scene = background(rng, size)
    pose = Pose.random(rng, size)
    if rng.random() < 0.6:
        draw_mast(scene, pose, rng)
    cloth = warp(flag(crew, rng, size), pose, rng, size)
    scene.paste(cloth, mask=cloth.getchannel("A"))
    for _ in range(int(rng.choice(3, p=(0.3, 0.5, 0.2)))):
        occlude(scene, pose, rng)
    return photograph(scene, rng)


# --- colours ---


def colour(rng: Rng, saturation: Range, value: Range, hue: Range = (0.0, 1.0)) -> Colour:
    """A random colour within ranges of saturation, value and hue."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))
    return round(255 * r), round(255 * g), round(255 * b)


def distance(a: Colour, b: Colour) -> float:
    """Perceived difference of two colours: mostly brightness, a little hue."""
    d = np.subtract(a, b)  # (3,)
    return float(abs(d @ (0.3, 0.6, 0.1)) + 0.25 * np.abs(d).max())


def mixed(a: Colour, b: Colour, fraction: float) -> Colour:
    """Blend of two colours, with this fraction of b."""
    r, g, bl = (round(x + fraction * (y - x)) for x, y in zip(a, b, strict=True))
    return r, g, bl


def palette(rng: Rng) -> tuple[Colour, Colour, Colour]:
    """Random colours of cloth, bone and dye that contrast: mostly, not always, pale bones on dark cloth."""
    while True:
        light = colour(rng, (0.0, 0.35), (0.75, 1.0))
        dark = colour(rng, (0.0, 0.8), (0.05, 0.35))
        middle = colour(rng, (0.4, 1.0), (0.35, 0.9))
        pairs = ((dark, light), (middle, light), (light, dark), (middle, dark))
        cloth, bone = pairs[int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1)))]
        dye = colour(rng, (0.3, 1.0), (0.3, 1.0))
        if distance(cloth, bone) > 85 and distance(cloth, dye) > 45 and distance(bone, dye) > 35:
            return cloth, bone, dye


# --- flat flag ---


def flag(crew: str, rng: Rng, size: int) -> Image.Image:
    """The flat flag: patterned cloth with the crew's emblem."""
    height = round(0.62 * size)
    width = round(ASPECT * height)
    cloth, bone, dye = palette(rng)
    sheet = Image.new("RGB", (width, height), cloth)
    pattern(ImageDraw.Draw(sheet), mixed(cloth, colour(rng, (0.0, 1.0), (0.1, 1.0)), rng.uniform(0.15, 0.4)), rng)

    emblem = stencil(crew, height)
    zoom = rng.uniform(0.92, 1.25)  # pixels of the stencil per pixel of the flag
    angle = np.radians(rng.uniform(-9, 9))
    mirror = rng.choice((-1.0, 1.0))
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    centre_x = width * rng.uniform(0.44, 0.56)
    centre_y = height * rng.uniform(0.46, 0.54)
    # Pillow wants the inverse transform: from pixels of the flag to pixels of the stencil.
    inverse = (mirror * c, -mirror * s, height / 2 - mirror * (c * centre_x - s * centre_y),
               s, c, height / 2 - s * centre_x - c * centre_y)  # fmt: skip
    printed = emblem.transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    for ink, coverage in zip((bone, dye, mixed(bone, cloth, 0.4)), printed.split(), strict=True):
        sheet.paste(ink, mask=coverage)
    return sheet


def pattern(pen: ImageDraw.ImageDraw, tint: Colour, rng: Rng) -> None:
    """Draw a random pattern: halves (vertical, horizontal or diagonal), bands, a border, or none."""
    width, height = pen.im.size
    match int(rng.integers(7)):
        case 0:
            pen.rectangle((0, 0, width * rng.uniform(0.3, 0.7), height), tint)
        case 1:
            pen.rectangle((0, 0, width, height * rng.uniform(0.3, 0.7)), tint)
        case 2:
            for k in range(0, 7, 2):
                pen.rectangle((0, height * k / 7, width, height * (k + 1) / 7), tint)
        case 3:
            pen.polygon(((0, 0), (width, 0), (0, height)), tint)
        case 4:
            pen.rectangle((0, 0, width, height), outline=tint, width=round(height * rng.uniform(0.04, 0.09)))


# --- waving flag ---


@dataclass(frozen=True)
class Pose:
    """Corners of a flag in pixels: hoist top, fly top, fly bottom, hoist bottom. The hoist is at the mast."""

    corners: NDArray[np.float64]  # (4, 2)

    @classmethod
    def random(cls, rng: Rng, size: int) -> Pose:
        """A random rotation, scale, position and perspective."""
        width = size * rng.uniform(0.62, 0.98)
        half = np.array([width, width / ASPECT * rng.uniform(0.85, 1.2)]) / 2  # (2,)
        flat = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])  # (4, 2)
        flat += rng.uniform(-0.07, 0.07, (4, 2)) * width
        angle = np.radians(np.clip(rng.normal(0, 13), -35, 35))
        c, s = np.cos(angle), np.sin(angle)
        rotated = flat @ np.array([[c, s], [-s, c]])  # (4, 2)
        room = np.maximum(size - np.ptp(rotated, axis=0), 0.06 * size)  # (2,)
        centre = size / 2 + rng.uniform(-0.5, 0.5, 2) * room  # (2,)
        return cls(centre + rotated - (rotated.max(axis=0) + rotated.min(axis=0)) / 2)

    def at(self, u: float, v: float) -> tuple[float, float]:
        """Pixel (x, y) of a point of the flag; u runs from hoist (0) to fly (1), v from top (0) to bottom (1)."""
        a, b, c, d = self.corners
        x, y = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * c)
        return float(x), float(y)

    @property
    def width(self) -> float:
        """Length of the upper edge in pixels."""
        return float(np.hypot(*(self.corners[1] - self.corners[0])))

    def flag_coordinates(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Invert the perspective: pixels (n, 2) -> flag coordinates (u, v), (n, 2)."""
        square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64)  # (4, 2)
        rows, target = [], []
        for (x, y), (u, v) in zip(self.corners, square, strict=True):
            rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
            target += [u, v]
        h = np.append(np.linalg.solve(np.array(rows), np.array(target)), 1.0).reshape(3, 3)  # (3, 3)
        projected = pixels @ h[:, :2].T + h[:, 2]  # (n, 3)
        return projected[:, :2] / projected[:, 2:]


def warp(flat: Image.Image, pose: Pose, rng: Rng, size: int) -> Image.Image:
    """The flag in its pose, with waves that grow towards the fly: size x size, RGBA."""
    width, height = flat.size
    waves = rng.uniform(0.7, 2.2)
    phase = rng.uniform(0, 2 * np.pi)
    lean = rng.uniform(-2.5, 2.5)
    swing = rng.uniform(0.015, 0.07)

    # Folds that face the light are brighter: shade by the slope of the wave, before warping.
    u = np.linspace(0, 1, width, dtype=np.float32)[None, :]  # (1, W)
    v = np.linspace(0, 1, height, dtype=np.float32)[:, None]  # (H, 1)
    angle = np.float32(2 * np.pi * waves) * u + np.float32(lean) * v + np.float32(phase)  # (H, W)
    shade = 1 + np.float32(rng.uniform(2, 6) * swing) * np.cos(angle) * (0.4 + 0.6 * u)  # (H, W)
    lit = np.clip(np.asarray(flat) * shade[:, :, None], 0, 255).astype(np.uint8)  # (H, W, 3)
    cloth = Image.fromarray(lit)
    cloth.putalpha(tatters(rng, width, height))

    edges = np.linspace(0, size, CELLS + 1).round()  # (CELLS + 1,)
    grid = np.stack(np.meshgrid(edges, edges), axis=-1)  # (CELLS + 1, CELLS + 1, 2)
    uv = pose.flag_coordinates(grid.reshape(-1, 2)).reshape(grid.shape)  # (CELLS + 1, CELLS + 1, 2)
    angle_at = 2 * np.pi * waves * uv[..., 0] + lean * uv[..., 1] + phase
    growing = np.clip(uv[..., 0], 0, 1)
    uv[..., 1] += swing * growing * np.sin(angle_at)
    uv[..., 0] += 0.5 * swing * growing * np.cos(angle_at)
    source = uv * (width, height)  # (CELLS + 1, CELLS + 1, 2)

    quads = np.concatenate([source[:-1, :-1], source[1:, :-1], source[1:, 1:], source[:-1, 1:]], axis=-1)
    corners = quads.reshape(CELLS, CELLS, 4, 2)
    touched = (corners.max(axis=2) > 0).all(axis=-1) & (corners.min(axis=2) < (width, height)).all(axis=-1)
    mesh = [
        ((int(edges[x]), int(edges[y]), int(edges[x + 1]), int(edges[y + 1])), tuple(quads[y, x].tolist()))
        for y, x in zip(*np.nonzero(touched), strict=True)
    ]
    return cloth.transform((size, size), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def tatters(rng: Rng, width: int, height: int) -> Image.Image:
    """Mask of the cloth: at random with a frayed fly and up to three holes."""
    cloth = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(cloth)
    if rng.random() < 0.5:
        teeth = int(rng.integers(3, 8))
        depth = rng.uniform(0.02, 0.12, teeth) * width
        fray = [(width - d * (k % 2), height * k / (teeth - 1)) for k, d in enumerate(depth.tolist())]
        pen.polygon([*fray, (width, height), (width + 1, 0)], 0)
    for _ in range(int(rng.integers(0, 4))):
        x, y, r = rng.uniform((0.05, 0.05, 0.01), (0.95, 0.95, 0.035)) * (width, height, width)
        pen.ellipse((x - r, y - r, x + r, y + 1.3 * r), 0)
    return cloth


# --- background ---


def background(rng: Rng, size: int) -> Image.Image:
    """Draw sky, clouds, and at random a sea, a harbour and distractors; at half size, since it is out of focus."""
    small = size // 2
    top = np.array(colour(rng, (0.1, 0.6), (0.2, 1.0), DAY))  # (3,)
    bottom = np.array(colour(rng, (0.05, 0.55), (0.4, 1.0), DAWN if rng.random() < 0.4 else DAY))  # (3,)
    t = np.linspace(0, 1, small)[:, None]  # (small, 1)
    column = (top + t * (bottom - top)).astype(np.uint8)  # (small, 3)
    scene = Image.fromarray(np.repeat(column[:, None], small, axis=1))
    pen = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(0, 6))):
        puff(pen, small, mixed((255, 255, 255), (90, 90, 110), rng.uniform(0, 0.8)), rng)
    horizon = small * rng.uniform(0.45, 1.0)
    if rng.random() < 0.75:
        sea(pen, small, horizon, colour(rng, (0.3, 0.9), (0.15, 0.6), WATER), rng)
    if rng.random() < 0.45:
        harbour(pen, small, horizon, rng)
    for _ in range(int(rng.integers(0, 5))):
        distractor(pen, small, rng)
    return scene.resize((size, size), Image.Resampling.BILINEAR)


def puff(pen: ImageDraw.ImageDraw, size: int, tone: Colour, rng: Rng) -> None:
    """Draw a cloud of four ovals."""
    x, y = rng.uniform(0, size, 2)
    for dx, dy, r in rng.uniform((-0.12, -0.03, 0.03), (0.12, 0.03, 0.1), (4, 3)) * size:
        pen.ellipse((x + dx - 1.5 * r, y + dy - r, x + dx + 1.5 * r, y + dy + r), tone)


def sea(pen: ImageDraw.ImageDraw, size: int, horizon: float, water: Colour, rng: Rng) -> None:
    """Draw water up to the horizon, with glints."""
    pen.rectangle((0, horizon, size, size), water)
    glint = mixed(water, (255, 255, 255), rng.uniform(0.15, 0.5))
    for x, y, length in rng.uniform((0, horizon, 0.03 * size), (size, size, 0.2 * size), (14, 3)).tolist():
        pen.line((x, y, x + length, y), glint)


def harbour(pen: ImageDraw.ImageDraw, size: int, horizon: float, rng: Rng) -> None:
    """Draw a row of houses, some with lit windows."""
    x = -0.1 * size
    while x < size:
        width, height = rng.uniform((0.08, 0.05), (0.25, 0.4)) * size
        pen.rectangle((x, horizon - height, x + width, horizon), colour(rng, (0.05, 0.5), (0.15, 0.8)))
        lamp = colour(rng, (0.0, 0.6), (0.2, 1.0), WOOD)
        for wx in np.arange(x + 2, x + width - 3, 6).tolist():
            pen.rectangle((wx, horizon - 0.8 * height, wx + 2, horizon - 0.8 * height + 3), lamp)
        x += width * rng.uniform(1.0, 1.6)


def distractor(pen: ImageDraw.ImageDraw, size: int, rng: Rng) -> None:
    """Draw something in the distance: a sun, a sail, a pennant, a gull or crossed spars."""
    x, y = rng.uniform(0, size, 2)
    r = size * rng.uniform(0.04, 0.13)
    paint = colour(rng, (0.0, 0.9), (0.1, 1.0))
    match int(rng.integers(5)):
        case 0:
            pen.ellipse((x - r, y - r, x + r, y + r), paint)
        case 1:
            pen.polygon(((x, y - 2 * r), (x + 1.4 * r, y + r), (x - 0.3 * r, y + r)), paint)
        case 2:
            pen.polygon(((x - r, y - 0.5 * r), (x + 1.5 * r, y), (x - r, y + 0.5 * r)), paint)
            pen.line((x - r, y - r, x - r, y + 3 * r), (60, 45, 35), 2)
        case 3:
            gull(pen, x, y, r, paint)
        case _:
            pen.line((x - r, y - r, x + r, y + r), paint, 3)
            pen.line((x + r, y - r, x - r, y + r), paint, 3)


def gull(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, paint: Colour) -> None:
    """Draw a gull with raised wings."""
    tips = ((-1.6, -0.5), (-0.7, -0.75), (0, 0), (0.7, -0.75), (1.6, -0.5), (0.7, -0.45), (0, 0.45), (-0.7, -0.45))
    pen.polygon([(x + dx * r, y + dy * r) for dx, dy in tips], paint)


# --- foreground ---


def draw_mast(scene: Image.Image, pose: Pose, rng: Rng) -> None:
    """Draw the mast along the hoist, beyond both ends."""
    (x0, y0), (x1, y1) = pose.at(0, 0), pose.at(0, 1)
    reach = rng.uniform(0.1, 3.0)
    wood = colour(rng, (0.2, 0.6), (0.15, 0.7), WOOD)
    width = max(2, round(0.02 * scene.width * rng.uniform(0.7, 1.6)))
    ends = (x0 + 0.12 * (x0 - x1), y0 + 0.12 * (y0 - y1), x1 + reach * (x1 - x0), y1 + reach * (y1 - y0))
    ImageDraw.Draw(scene).line(ends, wood, width)


def occlude(scene: Image.Image, pose: Pose, rng: Rng) -> None:
    """Cover some of the flag, never all of it: a spar, ropes, a gull, the edge of a sail, or smoke."""
    pen = ImageDraw.Draw(scene)
    x, y = pose.at(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9))
    match int(rng.integers(5)):
        case 0:
            lean = rng.uniform(-0.4, 0.4) * scene.height
            wood = colour(rng, (0.2, 0.6), (0.15, 0.7), WOOD)
            width = round(pose.width * rng.uniform(0.04, 0.11))
            pen.line((x - lean, -9, x + lean, scene.height + 9), wood, width)
        case 1:
            rope = colour(rng, (0.1, 0.4), (0.3, 0.9), WOOD)
            for _ in range(int(rng.integers(1, 4))):
                run, drop = rng.uniform(-1, 1, 2) * scene.width
                pen.line((x - run, y - drop, x + run, y + drop), rope, max(1, round(0.014 * scene.width)))
        case 2:
            gull(pen, x, y, pose.width * rng.uniform(0.08, 0.15), colour(rng, (0.0, 0.1), (0.6, 1.0)))
        case 3:
            corner = int(rng.integers(4))
            here, after, before = (pose.corners[(corner + k) % 4] for k in (0, 1, 3))  # (2,) each
            along, back = rng.uniform(0.25, 0.6, 2)
            outside = 1.5 * here - 0.5 * np.array(pose.at(0.5, 0.5))  # (2,)
            edge = np.stack([here + along * (after - here), outside, here + back * (before - here)])  # (3, 2)
            pen.polygon(edge.ravel().tolist(), colour(rng, (0.0, 0.3), (0.5, 0.95), WOOD))
        case _:
            smoke(scene, x, y, pose.width, rng)


def smoke(scene: Image.Image, x: float, y: float, width: float, rng: Rng) -> None:
    """Draw gun smoke: a soft patch, drawn at an eighth of the size and enlarged."""
    coarse = scene.width // 8
    cover = Image.new("L", (coarse, coarse))
    pen = ImageDraw.Draw(cover)
    for dx, dy, r in rng.uniform((-0.2, -0.15, 0.06), (0.2, 0.15, 0.16), (4, 3)) * width:
        box = np.array((x + dx - r, y + dy - r, x + dx + r, y + dy + r)) / 8  # (4,)
        pen.ellipse(tuple(box.tolist()), int(rng.integers(120, 230)))
    cover = cover.filter(ImageFilter.BoxBlur(1)).resize(scene.size, Image.Resampling.BICUBIC)
    grey = int(rng.integers(60, 220))
    scene.paste((grey, grey, grey), mask=cover)


# --- camera ---


def photograph(scene: Image.Image, rng: Rng) -> Image.Image:
    """Apply blur, uneven light, a tint, haze and grain."""
    if rng.random() < 0.5:
        scene = scene.filter(ImageFilter.BoxBlur(scene.width / 256 * rng.uniform(0.3, 1.6)))
    slope_x, slope_y = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    t = np.linspace(-1, 1, scene.width, dtype=np.float32)  # (S,)
    gain = np.float32(rng.uniform(0.6, 1.15)) * (1 + slope_x * t[None, :]) * (1 + slope_y * t[:, None])  # (S, S)
    # The same grain in all three channels, since JPEG would lose most of its colour.
    grain = rng.standard_normal(gain.shape, dtype=np.float32)  # (S, S)
    grain = grain * np.float32(rng.uniform(1, 14)) + np.float32(rng.uniform(0, 35))
    channels = []
    for channel, tint in zip(scene.split(), rng.uniform(0.88, 1.12, 3).astype(np.float32), strict=True):
        exposed = np.asarray(channel) * (gain * tint) + grain  # (S, S)
        channels.append(Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8)))
    return Image.merge("RGB", channels)
