/** Who is using the studio, and which server this is. */
import { api, ApiError, data, whenUnauthorised, type Schemas } from '../api'

class SessionState {
  /** Undefined until it is known. */
  value = $state.raw<Schemas['SessionView']>()
  error = $state.raw<ApiError>()
  /** Cost of the day so far; undefined until it is known, and where nothing has a price. */
  cost = $state<number>()

  get mustSignIn(): boolean {
    return this.value !== undefined && this.value.needed && !this.value.signed_in
  }

  /** Currency of all costs; null where nothing has a price. */
  get currency(): string | null {
    return this.value?.features.currency ?? null
  }

  async load(): Promise<void> {
    whenUnauthorised(() => {
      if (this.value) this.value = { ...this.value, needed: true, signed_in: false }
    })
    try {
      this.value = await data(api.GET('/api/v1/session'))
      this.error = undefined
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      this.error = error
    }
  }

  /** Raises ApiError for a key that is not valid. */
  async signIn(key: string): Promise<void> {
    this.value = await data(api.POST('/api/v1/session', { body: { key } }))
  }

  async signOut(): Promise<void> {
    await data(api.DELETE('/api/v1/session'))
  }

  async loadCost(): Promise<void> {
    if (!this.currency) return
    const midnight = new Date().setHours(0, 0, 0, 0) / 1000
    const usage = await data(api.GET('/api/v1/usage', { params: { query: { since: midnight } } }))
    this.cost = usage.reduce((sum, row) => sum + row.cost, 0)
  }
}

export const session = new SessionState()
