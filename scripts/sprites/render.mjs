// Reads a list of names (JSON on standard input) and writes one WebP per set and name: OUT/SET/NAME.webp, 96 x 96 with alpha.
import { readFileSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import sharp from "sharp";

const require = createRequire(import.meta.url);
const out = process.argv[2];
const names = JSON.parse(readFileSync(0, "utf8"));
const sets = { noto: "noto", twemoji: "twemoji", fluent: "fluent-emoji-flat" };

for (const [set, pack] of Object.entries(sets)) {
  const data = JSON.parse(readFileSync(require.resolve(`@iconify-json/${pack}/icons.json`), "utf8"));
  mkdirSync(`${out}/${set}`, { recursive: true });
  for (const name of names) {
    const icon = data.icons[name] ?? data.icons[data.aliases?.[name]?.parent];
    if (!icon) throw new Error(`${pack} has no ${name}`);
    const w = icon.width ?? data.width ?? 16, h = icon.height ?? data.height ?? 16;
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${icon.left ?? 0} ${icon.top ?? 0} ${w} ${h}" width="384" height="384">${icon.body}</svg>`;
    await sharp(Buffer.from(svg)).resize(96, 96).webp({ quality: 90, alphaQuality: 95 }).toFile(`${out}/${set}/${name}.webp`);
  }
}
