// Calls a service with node-sd-webui, and prints what it got as JSON.
// node sdapi_clients.mjs http://127.0.0.1:8188

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [apiUrl] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);
const { default: sdwebui } = await import(pathToFileURL(require.resolve('node-sd-webui')));
const client = sdwebui.default ? sdwebui.default({ apiUrl }) : sdwebui({ apiUrl });
const small = { width: 64, height: 64, steps: 4, seed: 5, samplingMethod: 'DPM++ 2M Karras' };
const results = {};

const made = await client.txt2img({ prompt: 'a red boat', negativePrompt: 'rain', batchSize: 2, ...small });
results.images = made.images.length;
const info = JSON.parse(made.info);
results.seeds = info.all_seeds;
results.sampler = info.sampler_name;
results.warnings = info.warnings;
results.without_effect = info.without_effect;

const again = await client.img2img({ prompt: 'a tree', imageData: [made.images[0]], initImages: [made.images[0]], ...small });
results.again = again.images.length;

const read = await client.pngInfo({ imageData: made.images[0] });
results.prompt = read.prompt;

try {
  await client.txt2img({ prompt: 'a', ...small, samplingMethod: 'Magic' });
} catch (error) {
  results.error = String(error.message ?? error);
}
console.log(JSON.stringify(results));
