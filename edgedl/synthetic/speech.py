"""Speech made by arithmetic, a voice and its resonances, and the log-mel frames that networks hear.

After D. Klatt, Software for a Cascade/Parallel Formant Synthesizer, 1980; formants of vowels are those that
G. Peterson and H. Barney measured, Control Methods Used in a Study of the Vowels, 1952. Nobody would take it for a
person, but words differ as they do in speech, and every utterance has a speaker of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgedl.data import mel
from edgedl.synthetic.drawing import Chance
from edgedl.synthetic.kept import kept

RATE = 16_000
"""Samples a second."""
TICK = 80
"""Samples between two settings of the resonances: 5 ms."""
WINDOW = 480
"""Samples that a frame hears: 30 ms."""
FLOOR = 1e-5
"""Energy below which all is silence."""

Sound = tuple[float, float, float, float, float, float, float, float]
"""Three formants in Hz, loudness of voice and of hiss, middle and width of the hiss in Hz, seconds."""

VOWELS = {
    "IY": (270, 2290, 3010), "IH": (390, 1990, 2550), "EH": (530, 1840, 2480), "AE": (660, 1720, 2410),
    "AH": (640, 1190, 2390), "AA": (730, 1090, 2440), "AO": (570, 840, 2410), "UH": (440, 1020, 2240),
    "UW": (300, 870, 2240), "ER": (490, 1350, 1690),
}  # fmt: skip
PAUSE: Sound = (500, 1500, 2500, 0, 0, 3000, 2000, 0.05)
SOUNDS: dict[str, tuple[Sound, ...]] = {
    **{name: ((*formants, 1.0, 0, 2500, 2000, 0.13),) for name, formants in VOWELS.items()},
    "W": ((300, 610, 2200, 0.7, 0, 2500, 2000, 0.07),),
    "Y": ((260, 2070, 3020, 0.6, 0, 2500, 2000, 0.06),),
    "R": ((310, 1060, 1380, 0.7, 0, 2500, 2000, 0.07),),
    "L": ((310, 1050, 2880, 0.6, 0, 2500, 2000, 0.07),),
    "M": ((250, 900, 2200, 0.35, 0, 2500, 2000, 0.08),),
    "N": ((250, 1700, 2600, 0.35, 0, 2500, 2000, 0.08),),
    "F": ((300, 900, 2300, 0, 0.25, 4500, 5000, 0.10),),
    "V": ((250, 900, 2300, 0.35, 0.10, 4500, 5000, 0.06),),
    "TH": ((300, 1400, 2500, 0, 0.20, 5500, 4000, 0.09),),
    "S": ((300, 1600, 2600, 0, 0.60, 6000, 1500, 0.11),),
    "Z": ((250, 1600, 2600, 0.30, 0.35, 6000, 1500, 0.08),),
    "SH": ((300, 1700, 2500, 0, 0.60, 3000, 1000, 0.11),),
    "HH": ((500, 1500, 2500, 0, 0.25, 1500, 2000, 0.06),),
    "P": (PAUSE, (300, 800, 2200, 0, 0.45, 1000, 1500, 0.025)),
    "T": (PAUSE, (300, 1700, 2600, 0, 0.60, 4500, 2000, 0.035)),
    "K": (PAUSE, (300, 2000, 2400, 0, 0.55, 1900, 800, 0.035)),
    "B": ((200, 800, 2200, 0.15, 0, 1000, 1500, 0.05), (300, 800, 2200, 0.5, 0.15, 1000, 1500, 0.015)),
    "D": ((200, 1700, 2600, 0.15, 0, 4500, 2000, 0.05), (300, 1700, 2600, 0.5, 0.20, 4500, 2000, 0.015)),
    "G": ((200, 2000, 2400, 0.15, 0, 1900, 800, 0.05), (300, 2000, 2400, 0.5, 0.20, 1900, 800, 0.02)),
}
GLIDES = {"OW": "AO UW", "EY": "EH IY", "AY": "AA IY", "AW": "AA UW", "JH": "D SH", "CH": "T SH"}
"""Sounds that are two, each of them shorter."""

WORDS = {
    "yes": "Y EH S", "no": "N OW", "up": "AH P", "down": "D AW N", "left": "L EH F T", "right": "R AY T",
    "on": "AA N", "off": "AO F", "stop": "S T AA P", "go": "G OW",
    "zero": "Z IH R OW", "one": "W AH N", "two": "T UW", "three": "TH R IY", "four": "F AO R", "five": "F AY V",
    "six": "S IH K S", "seven": "S EH V AH N", "eight": "EY T", "nine": "N AY N",
    "bed": "B EH D", "bird": "B ER D", "cat": "K AE T", "dog": "D AO G", "happy": "HH AE P IY", "house": "HH AW S",
    "tree": "T R IY", "wow": "W AW", "sheila": "SH IY L AH", "marvin": "M AA R V IH N", "learn": "L ER N",
    "forward": "F AO R W ER D", "backward": "B AE K W ER D", "follow": "F AA L OW", "visual": "V IH SH UW L",
}  # fmt: skip


def speak(utterances: Sequence[Sequence[str]], seconds: float, seed: int) -> np.ndarray:
    """Words said one after another, (N, samples) float32, each utterance by a speaker of its own in a noise of its own.

    Speakers differ in pitch, size, speed, and how clearly they articulate. What takes longer than `seconds` is said
    faster; where it takes less, it begins anywhere. Of an utterance without words only the noise is heard.
    """
    chance, num = Chance(seed), len(utterances)
    samples = round(seconds * RATE)
    num_ticks = -(-samples // TICK)
    tracks = np.stack([_track(words, num_ticks, chance) for words in utterances])
    tracks[:, :, :3] *= chance(0.85, 1.2, num, 1, 1)  # the length of the throat
    pitch = chance(90, 240, num, 1) * (
        1 + chance(-0.15, 0.15, num, 1) * np.linspace(-1, 1, num_ticks, dtype=np.float32)
    )
    voice, hiss = _source(pitch, tracks[:, :, 3], samples), tracks[:, :, 4].repeat(TICK, 1)[:, :samples]
    hiss = hiss * chance(-1, 1, num, samples)
    spoken = _resonate(voice, hiss, tracks)
    loudest = np.abs(spoken).max(axis=1, keepdims=True)
    spoken *= chance(0.2, 0.8, num, 1) / np.maximum(loudest, 0.05)
    colour = chance(0, 0.95, num, 1)  # from white noise to a rumble
    noise = _rumble(chance(-1, 1, num, samples), colour) * 10 ** chance(-3, -1.3, num, 1)
    return np.asarray(spoken + noise, np.float32)


def _track(words: Sequence[str], num_ticks: int, chance: Chance) -> np.ndarray:
    """The settings of an utterance in every tick, (ticks, 7) float32: a `Sound` without its length."""
    names = [part for word in words for name in (*WORDS[word].split(), "") for part in _parts(name)]
    ticks = np.array([sound[-1] for sound, _ in names] or [0.0], np.float32) * RATE / TICK
    ticks *= np.array([share for _, share in names] or [1.0], np.float32)
    ticks = ticks * chance(0.8, 1.3, 1) * chance(0.8, 1.25, len(ticks))
    ticks *= min(1.0, 0.95 * num_ticks / max(float(ticks.sum()), 1.0))
    begin = float(chance(0, 1, 1)[0]) * (num_ticks - float(ticks.sum()))
    ends = np.rint(begin + np.cumsum(ticks)).astype(int)
    track = np.tile(np.array(PAUSE[:-1], np.float32), (num_ticks, 1))
    start = round(begin)
    for (sound, _), end in zip(names, ends, strict=False):
        track[start:end] = np.array(sound[:-1], np.float32) * chance(0.93, 1.07, 7)
        start = end
    track[:, :3] = _smoothed(track[:, :3], int(chance(5, 12, 1)[0]))
    track[:, 3:] = _smoothed(track[:, 3:], 3)
    return track


def _parts(name: str) -> list[tuple[Sound, float]]:
    """The sounds that a name stands for, and how long each is as a share of itself; "" is what parts two words."""
    if not name:
        return [(PAUSE, 1.0)]
    glide = GLIDES.get(name)
    return [(sound, 0.7 if glide else 1.0) for part in (glide or name).split() for sound in SOUNDS[part]]


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Means over `width` ticks: nobody's mouth jumps."""
    padded = np.pad(values, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    means: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0).mean(axis=-1)
    return means


def _source(pitch: np.ndarray, loudness: np.ndarray, samples: int) -> np.ndarray:
    """The buzz of the vocal folds, a falling saw at `pitch` (N, ticks) Hz: (N, samples)."""
    turns = np.cumsum(pitch.repeat(TICK, 1)[:, :samples] / RATE, axis=1, dtype=np.float64)
    saw: np.ndarray = (0.5 - turns % 1).astype(np.float32) * loudness.repeat(TICK, 1)[:, :samples]
    return saw


def _resonate(voice: np.ndarray, hiss: np.ndarray, tracks: np.ndarray) -> np.ndarray:
    """Four formants, one after another, ring to the voice, and one of its own to the hiss: (N, samples)."""
    num, samples = voice.shape
    middles = np.concatenate([tracks[:, :, :3], np.full_like(tracks[:, :, :1], 3600), tracks[:, :, 5:6]], 2)
    widths = np.concatenate([np.broadcast_to(np.array([70, 100, 140, 250], np.float32), (*tracks.shape[:2], 4)),
                             tracks[:, :, 6:7]], 2)  # fmt: skip
    middles, widths = (np.ascontiguousarray(values.transpose(1, 2, 0)) for values in (middles, widths))
    radius = np.exp(-np.pi * widths / RATE)
    once, twice = 2 * radius * np.cos(2 * np.pi * np.minimum(middles, 7500) / RATE), -radius * radius
    gain = 1 - once - twice  # a formant leaves low tones as they are
    gain[:, 4] = 1 - radius[:, 4]
    voice, hiss = voice.T.copy(), hiss.T.copy()
    given, last, before = (np.zeros((5, num), np.float32) for _ in range(3))
    spoken = np.empty((samples, num), np.float32)
    for index in range(samples):
        tick = index // TICK
        given[0], given[1:4], given[4] = voice[index], last[:3], hiss[index]
        last, before = gain[tick] * given + once[tick] * last + twice[tick] * before, last
        spoken[index] = last[3] + last[4]
    return np.ascontiguousarray(spoken.T)


def _rumble(noise: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Noise (N, samples) of which `colour` (N, 1) says how much of each value lasts to the next, as loud as before."""
    kept = np.empty_like(noise)
    last = np.zeros(len(noise), np.float32)
    share, fresh = colour[:, 0], np.sqrt(1 - colour[:, 0] ** 2)
    for index in range(noise.shape[1]):
        last = share * last + fresh * noise[:, index]
        kept[:, index] = last
    return kept


def log_mel(sounds: np.ndarray, hop: int, mels: int) -> np.ndarray:
    """Loudness in `mels` bands every `hop` samples, (N, samples) -> (N, frames, mels) float32, mostly in [-1, 1]."""
    bands, window = mel_bands(mels), np.hanning(WINDOW).astype(np.float32)
    found = []
    for start in range(0, len(sounds), 64):
        pieces = np.lib.stride_tricks.sliding_window_view(sounds[start : start + 64], WINDOW, axis=1)[:, ::hop]
        spectra = np.abs(np.fft.rfft(pieces * window, 512)) ** 2
        found.append(np.log10(spectra @ bands / WINDOW + FLOOR).astype(np.float32))
    return np.concatenate(found) / 2.5 + 1


@kept
def heard(utterances: Sequence[Sequence[str]], seconds: float, seed: int, hop: int, mels: int) -> tuple[np.ndarray]:
    """What `log_mel` makes of what `speak` says, (N, frames, mels) float32, alone in a tuple."""
    return (log_mel(speak(utterances, seconds, seed), hop, mels),)


def num_frames(samples: int, hop: int) -> int:
    """How many frames `log_mel` makes of a sound."""
    return 1 + (samples - WINDOW) // hop


def mel_bands(mels: int) -> np.ndarray:
    """Triangles from 60 to 7,600 Hz, evenly spaced on the mel scale, each of sum 1: (257, mels)."""
    triangles = mel.bands(RATE, 512, mels, 60, 7600)
    normed: np.ndarray = triangles / np.maximum(triangles.sum(axis=0), 1e-9)
    return normed


def picture(frames: np.ndarray) -> np.ndarray:
    """Frames (T, mels) to look at, (mels x 3, T x 3) uint8: time to the right, high tones on top."""
    grey: np.ndarray = np.clip((frames.T[::-1] + 1) * 120, 0, 255).astype(np.uint8)
    return np.kron(grey, np.ones((3, 3), np.uint8))
