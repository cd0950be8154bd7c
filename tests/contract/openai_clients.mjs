// Calls a service with OpenAI's SDK for Node and with the Vercel AI SDK, and prints what they got as JSON.
// node openai_clients.mjs http://127.0.0.1:8188 picture.png

import fs from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [base, picture] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI, toFile } = await load('openai');
const { generateImage } = await load('ai');
const { createOpenAI } = await load('@ai-sdk/openai');

const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: 'any' });
const small = { prompt: 'a red boat', size: '64x64' };
const results = {};

const made = await client.images.generate({ ...small, n: 2, seed: 4, steps: 2 });
results.seeds = made.data.map((one) => one.seed);
results.tokens = made.usage.total_tokens;

results.events = [];
const stream = await client.images.generate({ ...small, stream: true, partial_images: 1, steps: 8 });
for await (const event of stream) results.events.push([event.type, event.size]);

const bytes = fs.readFileSync(picture);
const forms = [
  fs.createReadStream(picture),
  await toFile(bytes, 'a.png'),
  [await toFile(bytes, 'a.png')],
  new Blob([bytes]),
];
results.edits = [];
for (const image of forms) {
  const edited = await client.images.edit({ image, prompt: 'a house', steps: 4, strength: 0.5 });
  results.edits.push([edited.size, edited.usage.input_tokens_details.image_tokens]);
}

const error = async (call) => {
  try {
    return await call();
  } catch (thrown) {
    return [thrown.constructor.name, thrown.status ?? null, thrown.param ?? null, thrown.code ?? null];
  }
};
results.errors = [
  await error(() => client.images.generate({ prompt: 'x', size: '100x100' })),
  await error(() => client.images.generate({ prompt: 'x', model: 'no-such-model' })),
  await error(async () => {
    const failing = await client.images.generate({ prompt: 'a fault', stream: true });
    for await (const _ of failing);
  }),
];
results.models = [];
for await (const model of client.models.list()) results.models.push(model.id);

const vercel = createOpenAI({ baseURL: `${base}/v1`, apiKey: 'any' });
const drawn = await generateImage({ ...small, model: vercel.image('picturebook'), n: 2 });
results.vercel = drawn.images.map((one) => one.mediaType);
const again = await generateImage({
  model: vercel.image('gpt-image-1'),
  prompt: { text: 'a house', images: [bytes] },
});
results.vercel_edit = again.images.map((one) => one.mediaType);

console.log(JSON.stringify(results));
