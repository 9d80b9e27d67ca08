"""The kinds of scenes. A director takes the set and the dice and returns a Scene; its animator poses every photo."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .actors import COLOURS, Pose
from .camera import Camera
from .looks import Actors
from .sets import LIGHTS, Scenery, Studio
from .solids import Rgb, Thing

ACTOR_COLOURS = ("red", "yellow", "blue", "white", "orange")
TROUSERS, HAIR = ("black", "brown", "grey"), ("black", "brown", "orange")
NUMBERS = ("no", "one", "two", "three", "four", "five")
Shot = tuple[Camera, list[Thing]]


@dataclass(frozen=True)
class Scene:
    """One scene before it is photographed.

    `direction` is left, right, up, down or none, as seen in the picture; `num_moving` counts the things that move.
    """

    kind: str
    description: str
    num_photos: int
    take: Callable[[float], Image.Image | tuple[Studio, Camera, list[Thing]]]
    ground: str = ""
    light: str = ""
    colours: tuple[str, ...] = ()
    direction: str = "none"
    num_moving: int = 0
    text: tuple[str, ...] = ()


def _filmed(
    kind: str,
    words: str,
    studio: Studio,
    num_photos: int,
    pose: Callable[[float], Shot],
    colours: Sequence[str],
    direction: str,
    num_moving: int,
) -> Scene:
    scenery = studio.scenery
    when = {"day": "in daylight", "sunset": "at sunset", "night": "at night", "mist": "in mist"}[scenery.light.name]
    return Scene(
        kind,
        f"{words} on a {scenery.ground} ground {when}.",
        num_photos,
        lambda photo: (studio, *pose(photo)),
        scenery.ground,
        scenery.light.name,
        tuple(colours),
        direction,
        num_moving,
    )


def _pick(rng: random.Random, count: int, ground: str) -> list[str]:
    """Colours that differ from the ground and from each other."""
    return rng.sample([c for c in ACTOR_COLOURS if c != ground], count)


def _backdrop(rng: random.Random, actors: Actors, scenery: Scenery, span: float = 15.0) -> list[Thing]:
    """Two or three trees and houses behind the actors."""
    things = []
    for x in (-0.75 * span, 0.1 * span, 0.8 * span):
        at = (x + rng.uniform(-2.5, 2.5), rng.uniform(8.0, 12.0), 0.0)
        draw = rng.random()
        if draw < 0.55:
            leaves = (236, 240, 244) if scenery.ground == "white" else (38, 120, 50)
            things.append(actors.tree(leaves, rng.uniform(1.0, 1.5)).moved(at))
        elif draw < 0.8:
            lit = scenery.light.name == "night"
            things.append(actors.house(COLOURS["grey"], COLOURS["brown"], 6, rng.randint(1, 2), lit).moved(at))
    return things


def _count(num: int, colour: str, noun: str) -> str:
    several = "people" if noun == "person" else f"{noun}s"
    return f"{NUMBERS[num].capitalize()} {colour} {noun if num == 1 else several}"


def _across(i: float, num_photos: int, sign: int, start: float, end: float) -> float:
    return sign * (start + (end - start) * i / max(1, num_photos - 1))


def drive(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """Cars, a bus or (on blue ground) boats cross the picture."""
    ground, sign = studio.scenery.ground, rng.choice((-1, 1))
    body, roof = _pick(rng, 2, ground)
    actors = studio.look.actors
    car, bus = (actors.car, "car"), (actors.bus, "bus")
    make, noun = (actors.boat, "boat") if ground == "blue" else rng.choice((car, bus, car))
    num = 1 if noun == "bus" else rng.choice((1, 1, 2))
    scenes, camera = _backdrop(rng, studio.look.actors, studio.scenery), studio.camera(22.0)
    gap, turn = 9.5, 0.0 if sign > 0 else math.pi

    def pose(i: float) -> Shot:
        lead = _across(i, num_photos, 1, -8.5, 9.0 + gap * (num - 1) * 0.6)
        things = []
        for k in range(num):
            x = lead - gap * k
            wheel = -x / 0.8
            things.append(make(COLOURS[body], COLOURS[roof], wheel).moved((sign * x, -0.5, 0.0), turn))
        return camera, [*scenes, *things]

    where = "right" if sign > 0 else "left"
    verb = "sails" if noun == "boat" else "drives"
    words = f"{_count(num, body, noun)} {verb if num == 1 else verb[:-1]} to the {where}"
    return _filmed("drive", words, studio, num_photos, pose, [body, roof], where, num)


def walk(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """One to three figures walk across the picture."""
    actors = studio.look.actors
    ground, sign, num = studio.scenery.ground, rng.choice((-1, 1)), rng.choice((1, 1, 2, 3))
    shirt, trousers = _pick(rng, 1, ground)[0], rng.choice([c for c in TROUSERS if c != ground])
    hair = rng.choice(HAIR)
    scenes, camera = _backdrop(rng, studio.look.actors, studio.scenery), studio.camera(17.0)

    def pose(i: float) -> Shot:
        lead = _across(i, num_photos, 1, -5.5 if num == 1 else -4.0, 5.5 + 1.4 * (num - 1))
        things = []
        for k in range(num):
            step = 0.75 * math.sin(math.pi / 3 * (i + k))
            lift = 0.12 * abs(math.cos(math.pi / 3 * (i + k)))
            person = actors.figure(COLOURS[shirt], COLOURS[trousers], COLOURS[hair], Pose(swing=step))
            things.append(person.moved((sign * (lead - 3.9 * k), -1.0, lift), sign * 0.95))
        return camera, [*scenes, *things]

    where = "right" if sign > 0 else "left"
    words = f"{_count(num, '', studio.look.person)} in {shirt} {'walks' if num == 1 else 'walk'} to the {where}"
    return _filmed("walk", " ".join(words.split()), studio, num_photos, pose, [shirt, trousers], where, num)


def jump(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """One to three figures jump on the spot with their arms up."""
    actors = studio.look.actors
    ground, num = studio.scenery.ground, rng.choice((1, 2, 3))
    shirt, trousers = _pick(rng, 1, ground)[0], rng.choice([c for c in TROUSERS if c != ground])
    scenes, camera = _backdrop(rng, studio.look.actors, studio.scenery), studio.camera(18.5, (0.0, 0.0, 4.3))
    hair = [rng.choice(HAIR) for _ in range(num)]

    def pose(i: float) -> Shot:
        things = []
        for k in range(num):
            phase = ((i + 3 * k) % 9) / 9
            height = 10.0 * phase * (1 - phase)
            up = 0.4 + 2.2 * min(1.0, height)
            person = actors.figure(
                COLOURS[shirt], COLOURS[trousers], COLOURS[hair[k]], Pose(-0.3 * height, (up, up), height > 0.8)
            )
            things.append(person.moved((4.2 * (k - (num - 1) / 2), -1.0, height), 0.25 * (k - 1)))
        return camera, [*scenes, *things]

    words = f"{_count(num, '', studio.look.person)} in {shirt} {'jumps' if num == 1 else 'jump'} up and down"
    return _filmed("jump", " ".join(words.split()), studio, num_photos, pose, [shirt, trousers], "up", num)


def talk(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """Two figures face each other; mouths and arms move."""
    actors = studio.look.actors
    left, right = _pick(rng, 2, studio.scenery.ground)
    scenes, camera = _backdrop(rng, studio.look.actors, studio.scenery), studio.camera(13.5, (0.0, 0.0, 3.3))
    beats = [rng.random() for _ in range(num_photos)]

    def pose(i: float) -> Shot:
        speaker = (i // 8) % 2
        mouths = [beats[int(i)] < 0.6 and speaker == k for k in (0, 1)]
        lifts = [1.0 + 0.6 * math.sin(i * 1.1) if speaker == k else 0.05 for k in (0, 1)]
        a = actors.figure(COLOURS[left], COLOURS["black"], COLOURS["brown"], Pose(0.0, (lifts[0], 0.05), mouths[0]))
        b = actors.figure(COLOURS[right], COLOURS["brown"], COLOURS["black"], Pose(0.0, (0.05, lifts[1]), mouths[1]))
        return camera, [*scenes, a.moved((-2.9, -1.0, 0.0), 0.75), b.moved((2.9, -1.0, 0.0), -0.75)]

    words = f"A {studio.look.person} in {left} and one in {right} talk to each other"
    return _filmed("talk", words, studio, num_photos, pose, [left, right], "none", 2)


def slide(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """One to four big bricks slide across the ground, seen from above."""
    actors = studio.look.actors
    sign, num = rng.choice((-1, 1)), rng.choice((1, 2, 3, 4))
    colour = _pick(rng, 1, studio.scenery.ground)[0]
    camera = studio.camera(17.0, (0.0, 0.0, 0.0))
    rows = [(-4.8 + 9.6 * (k + 0.5) / num, rng.uniform(-3.0, 3.0)) for k in range(num)]
    size = (6, 4) if num == 1 else (5, 2)
    toy = Thing((actors.block(-size[0] / 2, -size[1] / 2, 0.0, *size, COLOURS[colour]),))

    def pose(i: float) -> Shot:
        x = _across(i, num_photos, 1, -6.0, 6.0)
        return camera, [toy.moved((sign * x + shift, y - 0.5, 0.0)) for y, shift in rows]

    where = "right" if sign > 0 else "left"
    words = f"{_count(num, colour, studio.look.block)} {'slides' if num == 1 else 'slide'} to the {where}"
    return _filmed("slide", words, studio, num_photos, pose, [colour], where, num)


def _plan(shape: str) -> list[tuple[float, float, int, int, int]]:
    """Where the bricks of a building go, in the order of building: x, y, level, width, depth."""
    if shape == "wall":
        return [(-6.0 + 4 * i + 2 * (r % 2), 0.0, r, 4, 2) for r in range(4) for i in range(3)]
    if shape == "stairs":
        return [(-7.0 + 3 * i, 0.0, r, 3, 3) for i in range(5) for r in range(i + 1)]
    return [(-2.0, -2.0 + 2 * i, r, 4, 2) if r % 2 else (-2.0 + 2 * i, -2.0, r, 2, 4) for r in range(6) for i in (0, 1)]


def build(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """A wall, stairs or a tower builds itself; bricks come down from above."""
    actors = studio.look.actors
    shape = rng.choice(("wall", "stairs", "tower"))
    first, second = _pick(rng, 2, studio.scenery.ground)
    plan = _plan(shape)
    camera = studio.camera(20.0, (0.0, 0.0, 3.4))
    photos_each = max(1, num_photos // len(plan))
    placed = [
        Thing((actors.block(x, y, 1.2 * level, w, d, COLOURS[(first, second)[level % 2]]),))
        for x, y, level, w, d in plan
    ]

    def pose(i: float) -> Shot:
        done, step = int(i // photos_each), i % photos_each
        things = placed[:done]
        if done < len(placed):
            drop = 2.6 * max(0.0, photos_each - 1 - step)
            things = [*things, placed[done].moved((0.0, 0.0, drop))]
        return camera, things

    block = studio.look.block
    named = "Stairs" if shape == "stairs" else f"A {shape}"
    words = f"{named} of {first} and {second} {block}s {'grow' if shape == 'stairs' else 'grows'} from falling {block}s"
    return _filmed("build", words, studio, num_photos, pose, [first, second], "down", 1)


def launch(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """A rocket waits, trembles and flies up."""
    actors = studio.look.actors
    body, trim = _pick(rng, 2, studio.scenery.ground)
    scenes, camera = _backdrop(rng, studio.look.actors, studio.scenery), studio.camera(21.0, (0.0, 0.0, 4.2))
    x = rng.choice((-3.0, 0.0, 3.0))
    flames = [rng.uniform(1.6, 3.0) for _ in range(num_photos)]

    def pose(i: float) -> Shot:
        height = 9.0 * max(0.0, i / max(1, num_photos - 1) - 0.1) ** 1.4
        ship = actors.rocket(COLOURS[body], COLOURS[trim], flames[int(i)]).moved((x, 0.0, 0.6 + height))
        pad = Thing((actors.block(x - 2, -2, 0.0, 4, 4, COLOURS["black"], h=0.4),))
        return camera, [*scenes, pad, ship]

    words = f"{_count(1, body, 'rocket')} with {trim} fins takes off"
    return _filmed("launch", words, studio, num_photos, pose, [body, trim], "up", 1)


def pan(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """The camera travels along a street; nothing else moves."""
    actors = studio.look.actors
    ground, sign = studio.scenery.ground, rng.choice((-1, 1))
    first, second = _pick(rng, 2, ground)
    lit, street = studio.scenery.light.name == "night", []
    for k in range(6):
        wall, roof = (first, second) if k % 2 else (second, first)
        toy = actors.house(COLOURS[wall], COLOURS[roof], 6, 1 + (k + rng.randint(0, 1)) % 2, lit)
        street.append(toy.moved((-20.0 + 8.0 * k, rng.uniform(2.0, 4.0), 0.0)))
        if rng.random() < 0.5:
            street.append(actors.tree().moved((-16.0 + 8.0 * k, 0.0, 0.0)))

    def pose(i: float) -> Shot:
        return studio.camera(22.0, (_across(i, num_photos, sign, -8.0, 8.0), 0.0, 3.2)), street

    where = "right" if sign > 0 else "left"
    words = f"The camera travels to the {where} along {first} and {second} houses"
    return _filmed("pan", words, studio, num_photos, pose, [first, second], "left" if sign > 0 else "right", 0)


def still(studio: Studio, rng: random.Random, num_photos: int) -> Scene:
    """Nothing moves but the light."""
    actors = studio.look.actors
    colours = _pick(rng, 2, studio.scenery.ground)
    camera = studio.camera(20.0)
    street = [
        actors.house(COLOURS[colours[0]], COLOURS[colours[1]], 6, 1).moved((-4.0, 2.0, 0.0)),
        actors.tree(size=1.4).moved((4.5, 1.0, 0.0)),
    ]
    words = f"{_count(1, colours[0], 'house')} with a {colours[1]} roof and a tree stand"
    return _filmed("still", words, studio, num_photos, lambda i: (camera, street), colours, "none", 0)


DIRECTORS: dict[str, Callable[[Studio, random.Random, int], Scene]] = {
    "drive": drive,
    "walk": walk,
    "build": build,
    "jump": jump,
    "slide": slide,
    "launch": launch,
    "pan": pan,
    "talk": talk,
}
FROM_ABOVE = {"slide"}


def title_card(size_px: tuple[int, int], words: tuple[str, str], rng: random.Random, num_photos: int) -> Scene:
    """The film's name in studs on a baseplate."""
    plate, ink = rng.choice((("blue", "yellow"), ("red", "white"), ("green", "white"), ("black", "orange")))
    picture = _studded_letters(size_px, words, COLOURS[plate], COLOURS[ink])
    text = f"The words {' '.join(words)} in {ink} studs on a {plate} plate."
    return Scene("title", text, num_photos, lambda photo: picture, colours=(plate, ink), text=words)


def _studded_letters(size_px: tuple[int, int], words: Sequence[str], plate: Rgb, ink: Rgb) -> Image.Image:
    """Letters of a bitmap font, a stud for each of its pixels."""
    cell, columns = 15, 54
    rows = round(columns * size_px[1] / size_px[0])
    bitmap = Image.new("1", (columns, rows))
    font, draw = ImageFont.load_default_imagefont(), ImageDraw.Draw(bitmap)
    for line, word in enumerate(words):
        left, _, right, _ = font.getbbox(word)
        draw.text(((columns - (right - left)) // 2, rows // 2 - 12 + 12 * line), word, font=font, fill=1)
    picture = Image.new("RGB", (columns * cell, rows * cell), plate)
    draw = ImageDraw.Draw(picture)
    light = LIGHTS["day"]
    for row in range(rows):
        for column in range(columns):
            rgb = ink if bitmap.getpixel((column, row)) else plate
            x, y = column * cell, row * cell
            draw.rectangle((x, y, x + cell, y + cell), fill=light.on(rgb, (0, 0, 1), 0.92))
            draw.ellipse((x + 4, y + 5, x + 13, y + 14), fill=light.on(rgb, (0, 0, 1), 0.7))
            draw.ellipse((x + 3, y + 3, x + 12, y + 12), fill=light.on(rgb, (0, 0, 1), 1.1))
    return picture.resize(size_px, Image.Resampling.LANCZOS)


def end_card(size_px: tuple[int, int], num_photos: int) -> Scene:
    """White words on black."""
    picture = Image.new("RGB", size_px, (14, 14, 18))
    font = ImageFont.load_default(size=round(size_px[1] * 0.14))
    ImageDraw.Draw(picture).text(
        (size_px[0] / 2, size_px[1] / 2), "THE END", font=font, fill=(240, 238, 230), anchor="mm"
    )
    return Scene("end", "White words on black: THE END.", num_photos, lambda photo: picture, text=("THE END",))
