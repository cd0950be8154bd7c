/** The map of the difference of two pictures, as it is drawn on a canvas. */
import { t } from '../i18n'
import { drawDifference, type Difference } from './pixels'

type Picture = Parameters<typeof drawDifference>[0]

export class DifferenceMap {
  /** How they differ; undefined until the map is drawn. */
  found = $state.raw<Difference>()
  error = $state.raw<{ code: string; message: string }>()
  #last = 0

  /** Draw the map. The last call counts. */
  async draw(a: Picture, b: Picture, canvas: HTMLCanvasElement): Promise<void> {
    const turn = ++this.#last
    this.found = this.error = undefined
    try {
      const found = await drawDifference(a, b, canvas)
      if (turn === this.#last) this.found = found
    } catch {
      if (turn === this.#last) this.error = { code: 'picture_unreadable', message: t.compare.unreadable }
    }
  }
}
