/** Which models are shown: by kind, family, folder and words. */
import type { Model } from '../../lib/api'

export interface Filter {
  kind: string
  family: string
  folder: string
  words: string
}

/** The folder of a model's name: `styles/ink` of `styles/ink/wash`; empty for one that is in none. Hub ids have none. */
export const folderOf = (model: Pick<Model, 'kind' | 'name'>): string =>
  model.kind === 'checkpoint' ? '' : model.name.split('/').slice(0, -1).join('/')

/** The last part of a model's name. */
export const shortName = (model: Pick<Model, 'kind' | 'name'>): string => model.name.split('/').at(-1)!

/** Models that a filter lets through, in their order. An empty field lets all through; words stand in any order. */
export function filtered(all: readonly Model[], { kind, family, folder, words }: Filter): Model[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean)
  return all.filter((model) => {
    if (kind && model.kind !== kind) return false
    if (family && model.family !== family) return false
    if (folder && folderOf(model) !== folder && !folderOf(model).startsWith(`${folder}/`)) return false
    if (!wanted.length) return true
    const text = [model.name, model.family, model.sha256 ?? '', ...model.aliases, ...model.trigger_words].join(' ').toLowerCase()
    return wanted.every((word) => text.includes(word))
  })
}

/** The values that models have, each with how many have it, in order. Empty ones are left out. */
export function tally(all: readonly Model[], value: (model: Model) => string): [string, number][] {
  const counts = new Map<string, number>()
  for (const model of all) {
    const one = value(model)
    if (one) counts.set(one, (counts.get(one) ?? 0) + 1)
  }
  return [...counts].sort(([a], [b]) => a.localeCompare(b))
}

/** A prompt with a model in it: a LoRA as `<lora:name:1>` with its trigger words, an embedding by its name. */
export function withModel(prompt: string, model: Pick<Model, 'kind' | 'name' | 'trigger_words'>): string {
  const words = model.trigger_words.filter((word) => !prompt.includes(word))
  const added = model.kind === 'lora' ? [`<lora:${model.name}:1>`, ...words] : [shortName(model)]
  return [prompt.trim().replace(/,$/, ''), ...added].filter(Boolean).join(', ')
}
