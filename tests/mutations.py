"""Damaged files, drawn by a generator: of bytes, of JSON, of lines of text. The same seed gives the same damage."""
import copy
import json
import struct
import zlib

# What exporters, spreadsheets and attackers put where something else belongs.
ODD = (None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -2**64, 10**400, .5, 1e308, -1e308, float("nan"),
       float("inf"), "", "0", "1", " 1 ", "1.5", "nan", "inf", "-Infinity", "1e400", "x", "\x00", "é", "\ud800",
       "../../etc/passwd", "/", "a" * 5000, [], {}, [None], [[1, 2], [3]], {"id": 1}, [0, 0, 0, 0], [1, 2, 3],
       [1, 2, 3, 4, 5], ["1", "2", "3", "4"])


def mutated_bytes(data, rng):
    """One to three kinds of damage: bits, spans, a cut, bytes put in or twice."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        start = int(rng.integers(len(data)))
        end = min(len(data), start + int(rng.integers(1, 64)))
        kind = rng.integers(7)
        if kind == 0:
            data[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[start:end] = bytes(rng.integers(0, 256, end - start, "uint8"))
        elif kind == 2:
            del data[start:]
        elif kind == 3:
            del data[start:end]
        elif kind == 4:
            data[start:start] = bytes(rng.integers(0, 256, 16, "uint8"))
        elif kind == 5:
            data[start:start] = data[start:end]
        else:
            data[start:end] = (b"\x00" if rng.integers(2) else b"\xff") * (end - start)
    return bytes(data)


def mutated_json(content, rng):
    """Text of JSON, in which some values, keys or entries are others, missing or twice."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        parent, key = _place(content, rng)
        kind = rng.integers(6)
        if kind < 3:
            parent[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        elif kind == 3:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[rng.integers(len(parent))]))
        elif kind == 4:
            parent[f"{key}_"] = parent.pop(key)
        else:
            other, place = _place(content, rng)
            parent[key] = copy.deepcopy(other[place])
        if not content:
            break
    return json.dumps(content).encode()


def _place(content, rng):
    """(container, key) somewhere in a tree."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = keys[rng.integers(len(keys))]
        inner = content[key]
        if not (isinstance(inner, (dict, list)) and inner) or rng.random() < .15:
            return content, key
        content = inner


def mutated_text(data, rng):
    """Bytes of text, in which some words are others, or as `mutated_bytes`."""
    if rng.random() < .3:
        return mutated_bytes(data, rng)
    words = data.decode().replace("<", " <").replace(">", "> ").split(" ")
    for _ in range(rng.integers(1, 4)):
        at = rng.integers(len(words))
        words[at] = str(ODD[rng.integers(len(ODD))]).replace("\ud800", "?")
    return " ".join(words).encode()


def png_claiming(width, height):
    """A PNG of a few bytes whose header, rightly summed, claims so many pixels."""
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")
