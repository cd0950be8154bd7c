/** What a picture was made with, as its record says it. */
import type { GenerationRequest, Image } from './api'

/** What says how a request starts from a picture. */
export const IMAGE_FIELDS = ['image', 'strength', 'mask', 'mask_blur', 'mask_padding', 'inpaint_area', 'extend'] as const

/** What is no setting of a picture alone. */
const NOT_SETTINGS = ['schema_version', 'num_images']

/** How much larger a refined picture is. */
const ENLARGEMENT = 2
/** Denoising strength with which a picture is refined from its pixels; higher where it would amount to less than one step. */
const REFINING_STRENGTH = 0.4
const SIDE_UNIT = 8

/** Whether pixels of the picture that a request starts from are kept: then there is no second pass at another size. */
export const keepsPixels = ({ mask, extend }: GenerationRequest): boolean => Boolean(mask || extend?.some((pixels) => pixels > 0))

/**
 * The request that draws a picture again, larger and with more detail.
 *
 * @param request What it was drawn with, with its own seed.
 * @param finished The picture, its reference as an upload and the number of its steps, where the request keeps pixels: it is then started from.
 */
export function refined(request: GenerationRequest, finished?: { reference: string; width: number; height: number; steps: number }): GenerationRequest {
  if (finished) {
    const rest = Object.fromEntries(Object.entries(request).filter(([name]) => !(IMAGE_FIELDS as readonly string[]).includes(name)))
    const side = (pixels: number): number => Math.round((ENLARGEMENT * pixels) / SIDE_UNIT) * SIDE_UNIT
    const size = { width: side(finished.width), height: side(finished.height) }
    return { ...rest, ...size, image: finished.reference, strength: Math.max(REFINING_STRENGTH, 1 / finished.steps), num_images: 1 }
  }
  const { hires_width, hires_height, hires_scale } = request
  const larger = (pixels: number | null | undefined): number | undefined => (pixels ? ENLARGEMENT * pixels : undefined)
  if (hires_width || hires_height) return { ...request, hires_width: larger(hires_width), hires_height: larger(hires_height), num_images: 1 }
  return { ...request, hires_scale: ENLARGEMENT * (hires_scale ?? 1), num_images: 1 }
}

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
