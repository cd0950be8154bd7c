/**
 * Every key of the studio, in one table. The handler, the tooltips and the sheet of shortcuts read it.
 *
 * A combination is `Ctrl+Enter`, `Shift+Escape`, `f`, or a sequence `g c`. `Ctrl` is also ⌘. Keys are identified by
 * `event.key`, so that they follow the keyboard's layout. Those without Ctrl act outside of text fields only.
 */
import { t } from '../i18n'
import { preferences } from './preferences.svelte'

export type KeyGroup = 'everywhere' | 'pictures' | 'prompt' | 'sliders' | 'compare' | 'queue' | 'mask'

interface Key {
  keys: string[]
  group: KeyGroup
  /** The widget handles it itself; it is in the table for the sheet. */
  shownOnly?: true
}

const key = (group: KeyGroup, ...keys: string[]): Key => ({ keys, group })
const shown = (group: KeyGroup, ...keys: string[]): Key => ({ keys, group, shownOnly: true })

const TABLE = {
  draw: key('everywhere', 'Ctrl+Enter'),
  close: key('everywhere', 'Escape'),
  stopAll: key('everywhere', 'Shift+Escape'),
  palette: key('everywhere', 'Ctrl+k'),
  shortcuts: key('everywhere', '?'),
  search: key('everywhere', '/'),
  openPictures: key('everywhere', 'o'),
  goCreate: key('everywhere', 'g c'),
  goHistory: key('everywhere', 'g h'),
  goQueue: key('everywhere', 'g q'),
  goModels: key('everywhere', 'g m'),
  goSettings: key('everywhere', 'g s'),
  move: shown('pictures', 'ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown'),
  ends: shown('pictures', 'Home', 'End'),
  open: shown('pictures', 'Enter'),
  next: key('pictures', 'ArrowRight'),
  previous: key('pictures', 'ArrowLeft'),
  first: key('pictures', 'Home'),
  last: key('pictures', 'End'),
  select: key('pictures', ' '),
  selectAll: key('pictures', 'Ctrl+a'),
  keep: key('pictures', 'f'),
  remove: key('pictures', 'x', 'Delete'),
  vary: key('pictures', 'v'),
  refine: key('pictures', 'r'),
  edit: key('pictures', 'e'),
  inspector: key('pictures', 'i'),
  compare: key('pictures', 'c'),
  fit: key('pictures', '0'),
  actualSize: key('pictures', '1'),
  zoomIn: key('pictures', '+', '='),
  zoomOut: key('pictures', '-'),
  heavier: shown('prompt', 'Ctrl+ArrowUp'),
  lighter: shown('prompt', 'Ctrl+ArrowDown'),
  earlierPrompt: shown('prompt', 'Alt+ArrowUp'),
  laterPrompt: shown('prompt', 'Alt+ArrowDown'),
  dial: key('sliders', 'd'),
  blink: key('compare', 'b'),
  earlier: shown('queue', 'Alt+ArrowUp'),
  later: shown('queue', 'Alt+ArrowDown'),
  brush: key('mask', 'b'),
  eraser: key('mask', 'Shift+B'),
  rectangle: key('mask', 'm'),
  smaller: key('mask', '[', ','),
  larger: key('mask', ']', '.'),
  softer: key('mask', '{'),
  harder: key('mask', '}'),
  invert: key('mask', 'i'),
  undo: key('mask', 'Ctrl+z'),
  redo: key('mask', 'Ctrl+Shift+Z', 'Ctrl+y'),
} satisfies Record<string, Key>

export type Action = keyof typeof TABLE
export const ACTIONS = Object.keys(TABLE) as Action[]

/** What the table says of an action, with the user's own keys. */
export function keyOf(action: Action): { label: string; keys: string[]; group: KeyGroup; shownOnly: boolean } {
  const row: Key = TABLE[action]
  return {
    label: t.keys[action],
    keys: preferences.value.keys[action] ?? row.keys,
    group: row.group,
    shownOnly: row.shownOnly ?? false,
  }
}

/** The keys of the table before the user's own. */
export const defaultKeys = (action: Action): string[] => TABLE[action].keys

/** The action that has a combination already, in the groups that act together with `action`'s. */
export function clashOf(action: Action, combination: string): Action | undefined {
  const group = keyOf(action).group
  return ACTIONS.find((other) => {
    const row = keyOf(other)
    const together = row.group === group || row.group === 'everywhere' || group === 'everywhere'
    return other !== action && together && row.keys.includes(combination)
  })
}

/** The combination of a keyboard event. */
export function combinationOf(event: Pick<KeyboardEvent, 'key' | 'ctrlKey' | 'metaKey' | 'altKey' | 'shiftKey'>): string {
  const isSign = event.key.length === 1 && event.key.toLowerCase() === event.key.toUpperCase()
  const name = event.key.length === 1 && !(event.shiftKey && !isSign) ? event.key.toLowerCase() : event.key
  const parts = [
    event.ctrlKey || event.metaKey ? 'Ctrl' : '',
    event.altKey ? 'Alt' : '',
    event.shiftKey && (!isSign || event.key === ' ') ? 'Shift' : '', // a sign such as ? says itself that Shift is held
    name,
  ]
  return parts.filter(Boolean).join('+')
}

const SYMBOLS: Record<string, string> = {
  ArrowLeft: '←',
  ArrowRight: '→',
  ArrowUp: '↑',
  ArrowDown: '↓',
  Escape: 'Esc',
  ' ': 'Space',
}
const isApple = typeof navigator !== 'undefined' && /Mac|iP(hone|ad)/.test(navigator.platform)

/** The caps of a combination for people: `['Ctrl', 'K']`, on Apple's keyboards `['⌘', 'K']`. */
export function caps(combination: string): string[] {
  return combination.split(/ (?=\S)/).flatMap((one) =>
    one
      .split(/\+(?=.)/)
      .map((part) => (part === 'Ctrl' && isApple ? '⌘' : (SYMBOLS[part] ?? (part.length === 1 ? part.toUpperCase() : part)))),
  )
}

type Handler = (event?: KeyboardEvent) => void | false
const handlers = new Map<Action, Handler[]>()

/**
 * Let an action call `handler` until the returned function is called; in a component:
 * `$effect(() => onAction('draw', draw))`. Of several, the last one is asked first; one that returns false passes.
 */
export function onAction(action: Action, handler: Handler): () => void {
  const all = handlers.get(action) ?? []
  handlers.set(action, [...all, handler])
  return () => handlers.set(action, handlers.get(action)!.filter((one) => one !== handler))
}

/** As `onAction`, for several: `$effect(() => onActions({ fit, close }))`. */
export function onActions(handlers: Partial<Record<Action, Handler>>): () => void {
  const ends = Object.entries(handlers).map(([action, handler]) => onAction(action as Action, handler))
  return () => ends.forEach((end) => end())
}

/** Do an action as its key would. Returns whether anything did. */
export function act(action: Action, event?: KeyboardEvent): boolean {
  return [...(handlers.get(action) ?? [])].reverse().some((handler) => handler(event) !== false)
}

/** Whether an action would do anything now, for the palette. */
export const isActive = (action: Action): boolean => (handlers.get(action)?.length ?? 0) > 0

const SEQUENCE_MS = 1200
let begun: { first: string; at: number } | undefined

/** The handler of the window's keydown events. */
export function handleKey(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing || ['Control', 'Shift', 'Alt', 'Meta'].includes(event.key)) return
  const combination = combinationOf(event)
  const target = event.target instanceof Element ? event.target : null
  if (isTyping(target) && !/Ctrl|Escape/.test(combination)) return
  if (document.querySelector('dialog:modal')) return // a dialog has the keys for itself
  if (target?.closest('button, a, summary, [role=option]') && (combination === ' ' || combination === 'Enter')) return
  const sequence = begun && event.timeStamp - begun.at < SEQUENCE_MS ? `${begun.first} ${combination}` : combination
  begun = undefined
  for (const action of ACTIONS) {
    const row = keyOf(action)
    if (row.shownOnly || !row.keys.includes(sequence)) continue
    if (act(action, event)) {
      event.preventDefault()
      return
    }
  }
  if (ACTIONS.some((action) => keyOf(action).keys.some((one) => one.startsWith(`${combination} `)))) {
    begun = { first: combination, at: event.timeStamp }
  }
}

function isTyping(target: Element | null): boolean {
  return target?.closest('input:not([type=range], [type=checkbox], [type=radio]), textarea, select, [contenteditable]') != null
}
