/** Tooltips: `<button {@attach tip('Keep', 'keep')}>` shows a label and the key of an action after a moment. */
import { caps, keyOf, type Action } from '../lib/keys'

class Tip {
  text = $state('')
  keys = $state.raw<string[]>([])
  target = $state.raw<HTMLElement>()
}

export const shownTip = new Tip()
const PAUSE_MS = 450

export function tip(text: string | undefined, action?: Action) {
  return (element: HTMLElement) => {
    if (!text) return
    let timer: ReturnType<typeof setTimeout> | undefined
    const show = () => {
      shownTip.text = text
      const first = action && keyOf(action).keys[0]
      shownTip.keys = first ? caps(first) : []
      shownTip.target = element
    }
    const later = (event: PointerEvent) => {
      if (event.pointerType === 'mouse') timer = setTimeout(show, PAUSE_MS)
    }
    const atFocus = () => {
      if (element.matches(':focus-visible')) timer = setTimeout(show, PAUSE_MS)
    }
    const hide = () => {
      clearTimeout(timer)
      if (shownTip.target === element) shownTip.target = undefined
    }
    const listeners = { pointerenter: later, pointerleave: hide, pointerdown: hide, focus: atFocus, blur: hide, keydown: hide }
    for (const [name, call] of Object.entries(listeners)) element.addEventListener(name, call as EventListener)
    return () => {
      hide()
      for (const [name, call] of Object.entries(listeners)) element.removeEventListener(name, call as EventListener)
    }
  }
}
