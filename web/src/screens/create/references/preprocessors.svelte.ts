/** The preprocessors of this server, read once they are needed. */
import { api, ApiError, data, type Schemas } from '../../../lib/api'

class Preprocessors {
  all = $state.raw<Schemas['PreprocessorView'][]>([])
  #asked = false

  async load(): Promise<void> {
    if (this.#asked) return
    this.#asked = true
    try {
      this.all = await data(api.GET('/api/v1/control/preprocessors'))
    } catch (error) {
      this.#asked = false // asked again by the next card
      if (!(error instanceof ApiError)) throw error
    }
  }
}

export const preprocessors = new Preprocessors()
