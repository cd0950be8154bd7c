/** What the Models screen shows of models beyond their list: what fits a base, and a picture for those that have none. */
import { SvelteMap } from 'svelte/reactivity'
import { api, ApiError, data, type Model } from '../api'

const PAUSE_MS = 150

class Shelf {
  /** Id of a model -> whether it can be used with the base that was asked for. */
  fits = $state.raw<ReadonlyMap<string, boolean | null>>(new Map())
  #base: string | undefined
  /** Id of a model -> address of the newest picture that was kept of it, else of the newest; null for none. */
  #pictures = new SvelteMap<string, string | null>()

  async loadFits(base: string | undefined): Promise<void> {
    this.#base = base
    if (!base) return
    try {
      const all = await data(api.GET('/api/v1/models', { params: { query: { base } } }))
      if (this.#base === base) this.fits = new Map(all.map((model) => [model.id, model.fits ?? null]))
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      this.fits = new Map() // a base that is not there: nothing can be said
    }
  }

  /** Address of a picture of a model; undefined while it is not known, or where there is none. */
  picture(model: Model): string | undefined {
    return model.thumbnail ?? this.#pictures.get(model.id) ?? undefined
  }

  /** Look for a picture of a model that is on the screen for a moment: `<span {@attach shelf.seek(model)}>`. */
  seek = (model: Model) => () => {
    if (model.thumbnail || this.#pictures.has(model.id) || !['checkpoint', 'lora'].includes(model.kind)) return
    const timer = setTimeout(() => void this.#find(model), PAUSE_MS)
    return () => clearTimeout(timer)
  }

  async #find(model: Model): Promise<void> {
    const which = model.kind === 'lora' ? { lora: model.name } : { model: model.name }
    try {
      for (const kept of [{ kept: true }, {}]) {
        const { items } = await data(api.GET('/api/v1/images', { params: { query: { ...which, ...kept, limit: 1 } } }))
        this.#pictures.set(model.id, items[0]?.thumbnail_url ?? null)
        if (items[0]) return
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error // the neutral mark stays
    }
  }
}

export const shelf = new Shelf()
