/** The slider whose values are drawn side by side, in the filmstrip that lies over Create. */
import type { DialScale, Scale } from '../dial'

class Dial {
  /** Undefined while no filmstrip is open. */
  scale = $state.raw<DialScale>()

  /** Open the filmstrip of a slider: `ondial={dial.of('steps')}`. */
  of(field: DialScale['field']): (scale: Scale) => void {
    return (scale) => (this.scale = { ...scale, field })
  }
}

export const dial = new Dial()
