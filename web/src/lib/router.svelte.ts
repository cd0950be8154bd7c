/**
 * The hash router. Every state of the studio that one would come back to has an address:
 * `#/history?q=boat`, `#/image/12`, `#/compare/12,15`, `#/settings/keys`.
 */

export const SCREENS = ['create', 'history', 'queue', 'models', 'settings', 'image', 'compare'] as const
export type Screen = (typeof SCREENS)[number]

export interface Route {
  screen: Screen
  /** What follows the screen: `['12']` of `#/image/12`. */
  path: string[]
  query: URLSearchParams
}

type Query = Record<string, string | number | boolean | null | undefined>

/** The route of a hash. What is unknown is the create screen. */
export function parse(hash: string): Route {
  const [path = '', query = ''] = hash.replace(/^#\/?/, '').split('?', 2)
  const [first = '', ...rest] = path.split('/').filter(Boolean).map(decode)
  const screen = (SCREENS as readonly string[]).includes(first) ? (first as Screen) : 'create'
  return { screen, path: screen === first ? rest : [], query: new URLSearchParams(query) }
}

/** The hash of a route, for links. Empty values of the query are left out. */
export function href(screen: Screen, path: (string | number)[] = [], query: Query = {}): string {
  const kept = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== '')
  const text = new URLSearchParams(kept.map(([name, value]) => [name, String(value)])).toString()
  const parts = [screen, ...path].map((part) => encodeURIComponent(part).replaceAll('%2C', ','))
  return `#/${parts.join('/')}${text ? `?${text}` : ''}`
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

class Router {
  route = $state.raw<Route>(parse(''))
  #inside = 0

  /** Follow the address from now on. */
  start(): void {
    const read = () => (this.route = parse(location.hash))
    window.addEventListener('hashchange', read)
    read()
  }

  go(screen: Screen, path: (string | number)[] = [], query: Query = {}): void {
    this.#inside += 1
    location.hash = href(screen, path, query)
  }

  /** Change the address without a new entry in the browser's history: while typing in a search box, for one. */
  replace(screen: Screen, path: (string | number)[] = [], query: Query = {}): void {
    history.replaceState(history.state, '', href(screen, path, query))
    this.route = parse(location.hash)
  }

  /** Leave an overlay: back where the studio was before it, or to `fallback` for one opened by its address. */
  back(fallback: Screen = 'create'): void {
    if (this.#inside > 0) {
      this.#inside -= 1
      history.back()
    } else this.replace(fallback)
  }
}

export const router = new Router()
