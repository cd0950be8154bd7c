/** The devices that draw, for operators. */
import { api, data } from '../api'

class Workers {
  devices = $state.raw<string[]>([])

  async load(): Promise<void> {
    const all = await data(api.GET('/api/v1/workers'))
    this.devices = [...new Set(all.map((one) => one.device))]
  }
}

export const workers = new Workers()
