// The tokens file of what `token create --json` printed: tokens.mjs FILE…
import fs from 'node:fs';

const lines = process.argv.slice(2).map((file) => JSON.parse(fs.readFileSync(file, 'utf8')).line);
console.log(`tokens:\n${lines.join('')}`);
