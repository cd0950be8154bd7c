/** Takes what a picture was made with over into the composer's draft. Each step can be undone. */
import { t } from '../i18n'
import { toast } from '../ui/toasts.svelte'
import type { GenerationRequest, Image } from './api'
import { chosenOf, requestOf } from './picture'
import { draft } from './state/draft.svelte'
import { models } from './state/models.svelte'

const VARIATION = 0.2
const SEEDS = 2 ** 32

/** The settings of a picture that its model's defaults do not say. */
export function chosen(image: Image): GenerationRequest {
  const request = requestOf(image)
  return chosenOf(request, models.defaultsOf(request.model ?? undefined))
}

/** Put everything that a picture was made with in the place of the draft. */
export function useAll(image: Image): void {
  changeDraft(t.viewer.usedAll, () => draft.replace(chosen(image)))
}

/** Take one setting over, and leave the rest of the draft as it is. */
export function useSetting(name: keyof GenerationRequest, value: unknown, title: string): void {
  changeDraft(t.viewer.used(title), () => draft.set(name, (value ?? undefined) as never))
}

/** The draft for pictures that are near to one: its settings with a little of the noise of another seed. */
export function vary(image: Image): void {
  const request = chosen(image)
  const variation_seed = Math.floor(Math.random() * SEEDS)
  const fields = { seed: request.seed, variation_seed }
  changeDraft(t.viewer.usedAll, () =>
    draft.replace({ ...request, variation_seed, variation_strength: VARIATION }, { image: image.id, relation: 'variation', fields }),
  )
}

/** Change the draft in a way that a note, which says what was done, can undo. */
export function changeDraft(text: string, act: () => void): void {
  const { request, origin } = draft
  const before = $state.snapshot(request) as GenerationRequest
  act()
  toast({ text, undo: () => draft.replace(before, origin) })
}
