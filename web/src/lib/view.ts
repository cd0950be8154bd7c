/** What History shows, as its address has it: `#/history?in=kept&q=red boat seed:7&like=12&order=newest`. */

/** All pictures, those that are kept, the trash, or the album of an id. */
export type Place = 'all' | 'kept' | 'trash' | (string & {})
export type Order = 'relevance' | 'newest' | 'taste'
export const ORDERS: Order[] = ['relevance', 'newest', 'taste']

export interface View {
  place: Place
  /** What stands in the search box. */
  q: string
  /** A picture that others are to be like: its number, or `sha256:…` of an upload. */
  like: string
  order: Order
}

export function viewOf(query: URLSearchParams): View {
  const order = query.get('order') as Order
  return {
    place: query.get('in') || 'all',
    q: query.get('q') ?? '',
    like: query.get('like') ?? '',
    order: ORDERS.includes(order) ? order : 'relevance',
  }
}

/** The query of a view's address. What is usual is left out. */
export function addressOf({ place, q, like, order }: View): Record<string, string> {
  return { in: place === 'all' ? '' : place, q, like, order: order === 'relevance' ? '' : order }
}

/** Whether the list of a view comes from a search. The trash cannot be searched. */
export const isSearch = ({ place, q, like, order }: View): boolean => place !== 'trash' && (q.trim() !== '' || like !== '' || order === 'taste')

/** What the server is to search for: the text of the box, within the place. */
export function queryOf({ place, q }: View, album: string | undefined): string {
  if (place === 'kept') return `${q} kept:yes`.trim()
  return album === undefined ? q.trim() : `${q} ${chip('album', album)}`.trim()
}

const WORDS = ['word', 'phrase']

/** A chip as text. */
export function chip(kind: string, value: string): string {
  const plain = value.replaceAll('"', '')
  return `${kind}:${/[\s:]/.test(plain) ? `"${plain}"` : plain}`
}

interface Term {
  kind: string
  value: string
}

/** The text of terms, as the server read them. */
export const textOf = (terms: Term[]): string =>
  terms.map(({ kind, value }) => (kind === 'phrase' ? `"${value}"` : WORDS.includes(kind) ? value : chip(kind, value))).join(' ')

/** The part of a text that the caret is in: from where to where, a chip's kind if it has one, and what of it is typed. */
export function partAt(text: string, caret: number): { from: number; to: number; kind: string | undefined; typed: string } {
  let from = 0
  let quoted = false
  for (let at = 0; at < caret; at++) {
    if (text[at] === '"') quoted = !quoted
    if (!quoted && /\s/.test(text[at]!)) from = at + 1
  }
  const rest = text.slice(caret).search(quoted ? /"/ : /\s/)
  const to = rest < 0 ? text.length : caret + rest + (quoted ? 1 : 0)
  const match = /^([a-z_]+):"?(.*)$/i.exec(text.slice(from, caret))
  return { from, to, kind: match?.[1]?.toLowerCase(), typed: match ? match[2]! : text.slice(from, caret) }
}
