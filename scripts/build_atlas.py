"""Builds the artwork atlas of `tessera.world` from two npm packages.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    mkdir -p art/google art/twitter
    tar xzf emoji-datasource-google-16.0.0.tgz  -C art/google
    tar xzf emoji-datasource-twitter-16.0.0.tgz -C art/twitter
    python scripts/build_atlas.py art

Writes `src/tessera/world/assets/atlas.zip`: for each style lossless WebP sheets of 64 px sprites, `SHEET` sprites a sheet, each
sheet with a palette of its own (one palette for all sprites costs visible colour; the sum stays under 3 MB), and `concepts.json`:
names, synonyms, categories. Skin tones, flags and keycaps are left out.
"""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tessera.io import atomic_write

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "src/tessera/world/assets"
SPRITE, COLUMNS, SHEET = 64, 8, 24
STYLES = {"noto": "google", "twemoji": "twitter"}


def main(art: Path) -> None:
    """Reads the unpacked packages under `art` and writes the two assets."""
    rows = json.loads((art / "google/package/emoji_pretty.json").read_text())
    rows = [r for r in rows if _wanted(r)]
    rows.sort(key=lambda r: r["sort_order"])
    ASSETS.mkdir(parents=True, exist_ok=True)
    with atomic_write(ASSETS / "atlas.zip") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for style, package in STYLES.items():
            sprites = _sprites(art, package, [r["unified"] for r in rows])
            error = 0.0
            for k in range(0, len(sprites), SHEET):
                data, mse = _encode(sprites[k : k + SHEET])
                error += mse
                info = zipfile.ZipInfo(f"{style}/{k // SHEET:02d}.webp", (2024, 1, 1, 0, 0, 0))
                archive.writestr(info, data)
            psnr = 10 * np.log10(255**2 / (error / -(-len(sprites) // SHEET)))
            print(f"{style}: {len(sprites)} sprites, PSNR on grey {psnr:.1f} dB")
    concepts = _concepts(rows)
    (ASSETS / "concepts.json").write_text(json.dumps(concepts, ensure_ascii=False, separators=(",", ":")) + "\n")
    everyday = sum(c["everyday"] for c in concepts)
    print(f"{len(concepts)} concepts, {everyday} everyday, atlas {(ASSETS / 'atlas.zip').stat().st_size / 1e6:.2f} MB")


def _wanted(row: dict) -> bool:
    if row["category"] in ("Component", "Flags") or row["subcategory"] in ("keycap", "flags"):
        return False
    return row["has_img_google"] and row["has_img_twitter"]


def _sprites(art: Path, package: str, order: list[str]) -> np.ndarray:
    """uint8 [N, 64, 64, 4], straight alpha, colour zero where alpha is zero."""
    sheet = np.asarray(Image.open(art / package / f"package/img/{package}/sheets-clean/64.png").convert("RGBA"))
    place = {r["unified"]: r for r in json.loads((art / package / "package/emoji_pretty.json").read_text())}
    out = np.zeros((len(order), SPRITE, SPRITE, 4), np.uint8)
    for i, unified in enumerate(order):
        x, y = place[unified]["sheet_x"] * 66 + 1, place[unified]["sheet_y"] * 66 + 1
        out[i] = sheet[y : y + SPRITE, x : x + SPRITE]
    out[..., :3] *= out[..., 3:] > 0
    return out


def _encode(sprites: np.ndarray) -> tuple[bytes, float]:
    """One sheet as lossless WebP with 256 RGBA colours; also its mean squared error composited on grey."""
    rows = SHEET // COLUMNS
    grid = np.zeros((SHEET, SPRITE, SPRITE, 4), np.uint8)
    grid[: len(sprites)] = sprites
    grid = grid.reshape(rows, COLUMNS, SPRITE, SPRITE, 4).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(np.ascontiguousarray(grid.reshape(rows * SPRITE, COLUMNS * SPRITE, 4)), "RGBA")
    small = sheet.quantize(256, method=Image.Quantize.FASTOCTREE, kmeans=2).convert("RGBA")
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", lossless=True, quality=100, method=6, exact=True)
    on_grey = [
        np.asarray(Image.alpha_composite(Image.new("RGBA", s.size, (128,) * 3 + (255,)), s), np.float64) for s in (sheet, small)
    ]
    return buffer.getvalue(), float(((on_grey[0] - on_grey[1])[..., :3] ** 2).mean())


def _concepts(rows: list[dict]) -> list[dict]:
    everyday: dict[str, tuple[str, str]] = {}
    for line in (ROOT / "scripts/everyday_concepts.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            category, _, words = line.partition(":")
            for word in words.split():
                short, _, name = word.partition("=")
                everyday[short] = ((name or short).replace("_", " "), category)
    missing = set(everyday) - {r["short_name"] for r in rows}
    if missing:
        raise SystemExit(f"everyday_concepts.txt names unknown short names: {sorted(missing)}")
    taken = {name for name, _ in everyday.values()}
    out = []
    for row in rows:
        short = row["short_name"]
        official = _plain(row["name"])
        if short in everyday:
            name, category = everyday[short]
        else:
            name, category = _plain(short), _plain(row["category"])
            if name in taken:
                name = official
            while name in taken:
                name += " sign"
            taken.add(name)
        others = {official, *map(_plain, row["short_names"])} - {name, ""}
        out.append(
            {
                "name": name,
                "synonyms": sorted(others),
                "category": category,
                "subcategory": row["subcategory"],
                "code": row["unified"],
                "everyday": short in everyday,
            }
        )
    if len({c["name"] for c in out}) != len(out):
        raise SystemExit("two concepts share a name")
    return out


def _plain(text: str) -> str:
    """Lower case, words separated by single blanks, hyphens kept inside words."""
    return " ".join(re.sub(r"[^a-z0-9\- ]+", " ", text.lower().replace("_", " ")).split())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
