/** The checkpoints, adapters and other networks of this server, and what a request may say. */
import { api, ApiError, data, estimateOf, type Model } from '../api'
import { settingsOf } from '../schema'

export interface RequestSchema {
  properties: Record<string, FieldSchema>
  $defs?: Record<string, unknown>
}
export interface FieldSchema {
  description?: string
  title?: string
  type?: string
  anyOf?: FieldSchema[]
  default?: unknown
  enum?: string[]
  group?: string
  unit?: string
  minimum?: number
  maximum?: number
  exclusiveMinimum?: number
  exclusiveMaximum?: number
  multipleOf?: number
  maxLength?: number
  items?: FieldSchema & { $ref?: string }
  prefixItems?: FieldSchema[]
  also?: string[]
  parts?: string[]
}

class Models {
  all = $state.raw<Model[]>([])
  schema = $state.raw<RequestSchema>()
  /** The settings of a request in the order of the schema; none while it is not known. */
  settings = $derived(this.schema ? settingsOf(this.schema) : [])
  settingsByName = $derived(new Map(this.settings.map((one) => [one.name as string, one])))
  loaded = $state(false)
  error = $state.raw<ApiError>()
  #defaults = $state<Record<string, Record<string, unknown>>>({})
  #asked = new Set<string>()

  get checkpoints(): Model[] {
    return this.all.filter((model) => model.kind === 'checkpoint')
  }

  get byDefault(): Model | undefined {
    return this.checkpoints.find((model) => model.default) ?? this.checkpoints[0]
  }

  /**
   * A model's defaults: what a request with a prompt alone is drawn with. Empty until the server has said; without a
   * name, those of the server's own model.
   */
  defaultsOf(name: string | undefined): Record<string, unknown> {
    const key = name ?? ''
    if (!this.#asked.has(key)) {
      this.#asked.add(key)
      void this.#loadDefaults(name)
    }
    return this.#defaults[key] ?? {}
  }

  async #loadDefaults(name: string | undefined): Promise<void> {
    try {
      const { request } = await estimateOf({ prompt: 'x', model: name })
      const given = ['prompt', 'seed', 'num_images']
      this.#defaults[name ?? ''] = Object.fromEntries(Object.entries(request).filter(([field]) => !given.includes(field)))
    } catch (error) {
      this.#asked.delete(name ?? '')
      if (!(error instanceof ApiError)) throw error // a model that is not there: Draw says so
    }
  }

  async load(): Promise<void> {
    try {
      const [all, schema] = await Promise.all([data(api.GET('/api/v1/models')), data(api.GET('/api/v1/schema'))])
      this.all = all
      this.schema = schema as unknown as RequestSchema
      this.loaded = true
      this.error = undefined
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      this.error = error
    }
  }
}

export const models = new Models()
