/**
 * The pictures that were drawn: the list that History shows, what is known of single pictures, and what is done to them.
 *
 * Pictures go by their numbers. A list comes as a compact index, or from a search; prompts are read as they come into view.
 */
import { t } from '../../i18n'
import { toast, toastError } from '../../ui/toasts.svelte'
import { api, ApiError, data, type GenerationRequest, type Image, type Schemas } from '../api'
import { events } from '../events.svelte'
import { requestOf } from '../picture'
import { isSearch, queryOf, type Place, type View } from '../view'
import { albums } from './albums.svelte'

export interface List {
  /** Numbers of the pictures, in the order of the list. */
  numbers: number[]
  /** Width by height of each. */
  ratios: number[]
  /** First row of each month, and the month: `[0, '2026-11']`; none for a search. */
  months: [number, string][]
  /** Number of all that fit, which a search may not have sent. */
  total: number
  /** How the server read the query. */
  terms: Schemas['TermView'][]
  note: string | null
}

const MOST_FOUND = 10_000
const MOST_NAMED = 10_000 // pictures in one change
const MOST_READ = 100
const PAUSE_MS = 250

class Library {
  /** The list of `view`; undefined until it is read. */
  list = $state.raw<List>()
  /** A newer list of the same view, which waits for `showNews`, since it would move what one looks at. */
  news = $state.raw<List>()
  error = $state.raw<ApiError>()
  loading = $state(false)
  /** The picture that was looked at last: where the grid goes on. */
  current = $state<number>()
  kept = $state.raw<ReadonlySet<number>>(new Set())
  /** Whether pictures must stay where they are, since someone is at work on them. */
  still = false
  #view: View | undefined
  #key = ''
  #known = $state.raw<ReadonlyMap<number, Image>>(new Map())
  #asked = new Set<number>()
  #changes = 0
  #reads = 0
  #timer: ReturnType<typeof setTimeout> | undefined
  #started = false

  /** Show the list of a view. One that is shown already stays, and is brought up to date. */
  async show(view: View): Promise<void> {
    this.#start()
    const key = JSON.stringify(view)
    if (key !== this.#key) {
      if (view.place !== this.#view?.place) this.list = undefined
      this.news = undefined
      this.#view = view
      this.#key = key
      await this.refresh({ now: true })
    } else await this.refresh()
  }

  /** Read the list anew. It is shown at once where nothing has to stay, or with `now`. */
  async refresh({ now = false } = {}): Promise<void> {
    const view = this.#view
    if (!view) return
    const changes = this.#changes
    const read = ++this.#reads
    this.loading = true
    try {
      const [list, kept] = await (isSearch(view) ? search(view) : index(view.place))
      if (read !== this.#reads) return
      if (changes !== this.#changes) return this.#later() // it may be older than what was done here
      this.error = undefined
      if (kept) this.kept = kept
      this.#take(list, now)
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      if (read === this.#reads) this.error = error
    } finally {
      if (read === this.#reads) this.loading = false
    }
  }

  showNews(): void {
    if (this.news) this.list = this.news
    this.news = undefined
  }

  /** A picture with its record, by id or number. */
  async get(id: string | number): Promise<Image> {
    const image = await data(api.GET('/api/v1/images/{image_id}', { params: { path: { image_id: String(id) } } }))
    this.#remember([image])
    return image
  }

  /** The request that a picture was drawn with: what its job was asked for; once that is gone, what its record says. */
  async exactRequest(image: Image): Promise<GenerationRequest> {
    try {
      const made = await data(api.GET('/api/v1/jobs/{job_id}', { params: { path: { job_id: image.job_id } } }))
      if (made.params) return made.params as GenerationRequest
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 404)) throw error
    }
    return requestOf(image)
  }

  /** What is known of a picture so far. */
  known(number: number): Image | undefined {
    return this.#known.get(number)
  }

  isKept(number: number): boolean {
    return this.kept.has(number)
  }

  /** Read what is not known of these pictures. */
  async describe(numbers: number[]): Promise<void> {
    const wanted = numbers.filter((number) => !this.#asked.has(number)).slice(0, MOST_READ)
    if (!wanted.length) return
    wanted.forEach((number) => this.#asked.add(number))
    try {
      const deleted = this.#view?.place === 'trash'
      const page = await data(api.GET('/api/v1/images', { params: { query: { number: wanted, limit: MOST_READ, deleted } } }))
      this.#remember(page.items)
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      wanted.forEach((number) => this.#asked.delete(number)) // asked again when they are next in view
    }
  }

  /** Mark pictures as ones to keep, or as others. */
  async keep(numbers: number[], kept = true): Promise<void> {
    const before = this.kept
    const now = new Set(before)
    numbers.forEach((number) => (kept ? now.add(number) : now.delete(number)))
    this.kept = now
    await this.#change(numbers, { kept }, () => (this.kept = before))
  }

  /** Put pictures into the trash. They leave the list at once, and come back to their places by Undo. */
  async remove(numbers: number[]): Promise<void> {
    const undo = () => void this.restore(numbers, { quiet: true })
    if (await this.#leave(numbers, { deleted: true })) toast({ text: t.history.deleted(numbers.length), undo })
  }

  /** Take pictures out of the trash. */
  async restore(numbers: number[], { quiet = false } = {}): Promise<void> {
    const done = this.#view?.place === 'trash' ? await this.#leave(numbers, { deleted: false }) : await this.#change(numbers, { deleted: false })
    if (!done) return
    if (!quiet) toast({ text: t.history.restored(numbers.length) })
    await this.refresh({ now: true })
  }

  /** Delete pictures of the trash for good. */
  async erase(numbers: number[]): Promise<void> {
    try {
      for (const number of numbers) {
        await data(api.DELETE('/api/v1/images/{image_id}', { params: { path: { image_id: String(number) } } }))
      }
    } catch (error) {
      toastError(error)
    }
    await this.refresh({ now: true })
  }

  /** Delete all that is in the trash for good. */
  async emptyTrash(): Promise<void> {
    try {
      await data(api.DELETE('/api/v1/trash'))
    } catch (error) {
      toastError(error)
    }
    await this.refresh({ now: true })
  }

  /** Put pictures into an album. */
  async addTo(album: string, numbers: number[]): Promise<void> {
    try {
      const changed = await albums.change(album, { add: numbers })
      toast({
        text: t.history.added(numbers.length, changed.name),
        undo: () => void albums.change(album, { remove: numbers }).then(() => this.refresh({ now: true }), toastError),
      })
    } catch (error) {
      toastError(error)
    }
  }

  /** Take pictures out of an album. They stay in the library. */
  async takeOut(album: string, numbers: number[]): Promise<void> {
    try {
      const changed = await albums.change(album, { remove: numbers })
      this.#without(numbers)
      toast({
        text: t.history.takenOut(numbers.length, changed.name),
        undo: () => void albums.change(album, { add: numbers }).then(() => this.refresh({ now: true }), toastError),
      })
    } catch (error) {
      toastError(error)
    }
  }

  #start(): void {
    if (this.#started) return
    this.#started = true
    events.on('job', (event) => {
      if (event.change === 'done') this.#later()
    })
    events.on('library', (event) => {
      if (event.change !== 'kept') void albums.load() // they say how many pictures they have
      this.#later()
    })
    events.onReconnect(() => {
      void albums.load()
      this.#later()
    })
  }

  /** Read the list soon, once for all changes that come together. */
  #later(): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.refresh(), PAUSE_MS)
  }

  #take(list: List, now: boolean): void {
    const same = this.list?.numbers.length === list.numbers.length && list.numbers.every((number, row) => number === this.list!.numbers[row])
    if (now || same || !this.list || !this.still) {
      // Arrays that say the same stay, so that nothing is laid out anew.
      if (same && this.list) {
        const { numbers, ratios, months } = this.list
        list = { ...list, numbers, ratios, months: JSON.stringify(months) === JSON.stringify(list.months) ? months : list.months }
      }
      this.list = list
      this.news = undefined
    } else this.news = list
  }

  #without(numbers: number[]): void {
    this.#changes += 1
    const gone = new Set(numbers)
    const strip = (list: List): List => {
      const rows = list.numbers.map((number, row) => (gone.has(number) ? -1 : row)).filter((row) => row >= 0)
      const left = { ...list, numbers: rows.map((row) => list.numbers[row]!), ratios: rows.map((row) => list.ratios[row]!) }
      const first = list.months.map(([row, month]): [number, string] => [rows.findIndex((one) => one >= row), month])
      const months = first.filter(([row], at) => row >= 0 && row !== (first[at + 1]?.[0] ?? -2))
      return { ...left, months, total: list.total - (list.numbers.length - rows.length) }
    }
    if (this.list) this.list = strip(this.list)
    if (this.news) this.news = strip(this.news)
  }

  async #leave(numbers: number[], marks: { deleted: boolean }): Promise<boolean> {
    const before = this.list
    this.#without(numbers)
    return this.#change(numbers, marks, () => (this.list = before))
  }

  async #change(numbers: number[], marks: { kept?: boolean; deleted?: boolean }, back = (): unknown => undefined): Promise<boolean> {
    this.#changes += 1
    try {
      const { kept = null, deleted = null } = marks
      for (let from = 0; from < numbers.length; from += MOST_NAMED) {
        await data(api.PATCH('/api/v1/images', { body: { ids: numbers.slice(from, from + MOST_NAMED), kept, deleted } }))
      }
      this.#changes += 1
      return true
    } catch (error) {
      back()
      toastError(error)
      return false
    }
  }

  #remember(images: Image[]): void {
    const now = new Map(this.#known)
    for (const image of images) {
      this.#asked.add(image.number)
      now.set(image.number, image.record ? image : { ...image, record: now.get(image.number)?.record })
    }
    this.#known = now
    const changed = images.filter((image) => image.kept !== this.kept.has(image.number))
    if (!changed.length) return
    const kept = new Set(this.kept)
    changed.forEach((image) => (image.kept ? kept.add(image.number) : kept.delete(image.number)))
    this.kept = kept
  }
}

/** The list of a place, and which of it are kept. */
async function index(place: Place): Promise<[List, ReadonlySet<number>]> {
  const which = place === 'all' ? {} : place === 'kept' ? { kept: true } : place === 'trash' ? { deleted: true } : { album: place }
  const found = await data(api.GET('/api/v1/images/index', { params: { query: which } }))
  let number = 0
  const numbers = found.numbers.map((less, row) => (number = row ? number - less : less))
  const list: List = {
    numbers,
    ratios: found.ratios.map((hundredths) => hundredths / 100),
    months: found.months as [number, string][],
    total: found.total,
    terms: [],
    note: null,
  }
  return [list, new Set(found.kept.map((row) => numbers[row]!))]
}

/** What a search finds. Which are kept shows as they come into view. */
async function search(view: View): Promise<[List, undefined]> {
  const q = queryOf(view, albums.name(view.place))
  const query = { q, like: view.like || undefined, order: view.order, limit: MOST_FOUND }
  const found = await data(api.GET('/api/v1/images/search', { params: { query } }))
  return [
    {
      numbers: found.items.map((hit) => hit.number),
      ratios: found.items.map((hit) => hit.ratio),
      months: [],
      total: found.total,
      terms: found.terms,
      note: found.note ?? null,
    },
    undefined,
  ]
}

export const library = new Library()
