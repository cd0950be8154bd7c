/** What a picture was made with, as its record says it. */
import type { GenerationRequest, Image } from './api'

/** What is no setting of a picture alone. */
const NOT_SETTINGS = ['schema_version', 'num_images']

/** The request of a picture, every default filled in. */
export function requestOf(image: Image): GenerationRequest {
  const request = (image.record?.['request'] ?? {}) as Record<string, unknown>
  return Object.fromEntries(Object.entries(request).filter(([name, value]) => !NOT_SETTINGS.includes(name) && !isNothing(value)))
}

/** The settings of a request that are not the defaults of its model. */
export function chosenOf(request: GenerationRequest, defaults: Record<string, unknown>): GenerationRequest {
  const always = ['prompt', 'seed', 'width', 'height']
  return Object.fromEntries(
    Object.entries(request).filter(([name, value]) => always.includes(name) || !isEqual(value, defaults[name] ?? null)),
  )
}

export interface Row {
  /** Names of parts of the record: `['request', 'steps']`. */
  path: string[]
  /** Value of each picture. */
  values: unknown[]
}

/** The settings in which pictures differ: those of their requests, in the order that they have there. */
export function settingsThatDiffer(images: Image[]): Row[] {
  const requests = images.map((image) => requestOf(image) as Record<string, unknown>)
  return differing(requests).map(({ path, values }) => ({ path: ['request', ...path], values }))
}

/** What else of their records differs: the model's hash, versions, the device. */
export function surroundingsThatDiffer(images: Image[]): Row[] {
  return ['model', 'environment', 'inputs'].flatMap((part) =>
    differing(images.map((image) => (image.record?.[part] ?? {}) as Record<string, unknown>)).map(({ path, values }) => ({
      path: [part, ...path],
      values,
    })),
  )
}

function differing(all: Record<string, unknown>[]): Row[] {
  const names = [...new Set(all.flatMap((one) => Object.keys(one)))]
  return names
    .map((name) => ({ path: [name], values: all.map((one) => one[name] ?? null) }))
    .filter(({ values }) => values.some((value) => !isEqual(value, values[0])))
}

const isNothing = (value: unknown): boolean => value === null || value === undefined || (Array.isArray(value) && value.length === 0)

/** Whether two values say the same: nothing is an empty list, too. */
const isEqual = (a: unknown, b: unknown): boolean => (isNothing(a) && isNothing(b)) || JSON.stringify(a) === JSON.stringify(b)
