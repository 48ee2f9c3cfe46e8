def background(place: str, rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A muted background, so that objects stand out; drawn at `SIZE * SCALE`."""
    n = SIZE * SCALE
    image = Image.new("RGB", (n, n))
    d = ImageDraw.Draw(image)
    horizon = int(n * rng.uniform(0.2, 0.34))
    _BACKGROUNDS[place](d, n, horizon, rng)
    return image, d


def _blades(d: ImageDraw.ImageDraw, n: int, top: int, rng: np.random.Generator, color: Color):
    for x, y in rng.integers((0, top), (n, n), size=(40, 2)).tolist():
        d.line([(x, y), (x + 3, y - 7)], fill=color, width=2)


def _grass(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(206, 230, 244))
    d.rectangle([0, horizon, n, n], fill=(172, 210, 140))
    _blades(d, n, horizon + 8, rng, (140, 184, 108))


def _beach(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon // 2], fill=(214, 236, 248))
    d.rectangle([0, horizon // 2, n, horizon], fill=(120, 190, 212))
    d.rectangle([0, horizon, n, n], fill=(242, 226, 184))
    for x, y in rng.integers((0, horizon), (n, n), size=(60, 2)).tolist():
        d.ellipse([x, y, x + 2, y + 2], fill=(222, 202, 154))


def _street(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(222, 226, 230))
    x = 0
    while x < n:
        width = int(rng.integers(24, 52))
        top = int(rng.integers(4, max(5, horizon - 12)))
        d.rectangle([x, top, x + width - 4, horizon], fill=(196, 190, 196))
        x += width
    d.rectangle([0, horizon, n, n], fill=(168, 168, 174))
    for x in range(-10, n, 56):
        d.rectangle([x, n - 34, x + 30, n - 28], fill=(226, 226, 220))


def _room(d, n, horizon, rng):
    floor = n - horizon
    d.rectangle([0, 0, n, floor], fill=(240, 226, 212))
    d.rectangle([0, floor, n, n], fill=(204, 174, 140))
    for x in range(int(rng.integers(0, 40)), n, 48):
        d.line([(x, floor), (x - 20, n)], fill=(186, 154, 120), width=2)
    d.rectangle([0, floor - 6, n, floor], fill=(250, 246, 240))


def _lake(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(226, 238, 240))
    d.polygon([(0, horizon), (n * 0.3, horizon * 0.3), (n * 0.55, horizon)], fill=(176, 204, 190))
    d.polygon([(n * 0.4, horizon), (n * 0.75, horizon * 0.2), (n, horizon)], fill=(162, 192, 182))
    d.rectangle([0, horizon, n, n], fill=(152, 198, 222))
    for x, y in rng.integers((0, horizon + 4), (n, n), size=(24, 2)).tolist():
        d.arc([x, y, x + 22, y + 10], 200, 340, fill=(190, 222, 238), width=2)


def _snow(d, n, horizon, rng):
    d.rectangle([0, 0, n, horizon], fill=(196, 206, 222))
    d.rectangle([0, horizon, n, n], fill=(234, 238, 246))
    for x, y in rng.integers((0, 0), (n, n), size=(50, 2)).tolist():
        d.ellipse([x, y, x + 4, y + 4], fill=(252, 252, 255))


_BACKGROUNDS = {
    "grass": _grass, "beach": _beach, "street": _street,
    "room": _room, "lake": _lake, "snow": _snow,
}  # fmt: skip
