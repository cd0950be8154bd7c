/** Preferences of this browser: theme, keys, notices. Kept in localStorage; all tabs follow. */

export type Theme = 'system' | 'light' | 'dark'

export interface Preferences {
  theme: Theme
  /** Action -> its combinations, where they differ from the table of keys. */
  keys: Record<string, string[]>
  /** How the user is notified of the end of a set while the studio is in the background. */
  notices: { title: boolean; sound: boolean; system: boolean }
  inspector: boolean
}

const KEY = 'limner.preferences'
const DEFAULTS: Preferences = {
  theme: 'system',
  keys: {},
  notices: { title: true, sound: false, system: false },
  inspector: true,
}

class Stored {
  value = $state<Preferences>(read())

  start(): void {
    window.addEventListener('storage', (event) => {
      if (event.key === KEY) this.value = read()
    })
    $effect.root(() => {
      $effect(() => write(this.value))
      $effect(() => {
        const { theme } = this.value
        if (theme === 'system') delete document.documentElement.dataset.theme
        else document.documentElement.dataset.theme = theme
      })
    })
  }
}

function read(): Preferences {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? '{}') as Partial<Preferences>
    return { ...DEFAULTS, ...found, notices: { ...DEFAULTS.notices, ...found.notices } }
  } catch {
    return structuredClone(DEFAULTS)
  }
}

function write(value: Preferences): void {
  const text = JSON.stringify(value)
  try {
    if (localStorage.getItem(KEY) !== text) localStorage.setItem(KEY, text)
  } catch {
    // Private windows may forbid it: then preferences last as long as the page.
  }
}

const stored = new Stored()
export const startPreferences = (): void => stored.start()
export const preferences = {
  get value(): Preferences {
    return stored.value
  },
}
