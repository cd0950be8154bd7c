/**
 * A mask as pixels: 255 is inpainted, 0 keeps the picture's pixels. It is drawn here and not by a canvas, so that
 * the same strokes give the same bytes in every browser. Undo keeps the tiles that a stroke changed.
 */

export interface Brush {
  /** Diameter in pixels. */
  size: number
  /** Share of the radius at which the soft edge begins, from 0 to 1. */
  hardness: number
  erase: boolean
}

export interface Rect {
  x: number
  y: number
  width: number
  height: number
}

type Tiles = Map<number, Uint8Array>

const TILE = 64
const UNDO_BYTES = 64 * 2 ** 20

export class Mask {
  readonly width: number
  readonly height: number
  readonly pixels: Uint8Array
  readonly #across: number
  #stroke: Tiles | undefined
  #done: Tiles[] = []
  #undone: Tiles[] = []
  #bytes = 0

  constructor(width: number, height: number, pixels = new Uint8Array(width * height)) {
    if (pixels.length !== width * height) throw new Error(`${pixels.length} pixels for ${width} × ${height}`)
    this.width = width
    this.height = height
    this.pixels = pixels
    this.#across = Math.ceil(width / TILE)
  }

  get canUndo(): boolean {
    return this.#done.length > 0
  }

  get canRedo(): boolean {
    return this.#undone.length > 0
  }

  /** Share of the picture that is inpainted, from 0 to 1. */
  get share(): number {
    return this.pixels.reduce((sum, one) => sum + one, 0) / (255 * this.pixels.length)
  }

  /** Begin a change that is undone as one. */
  begin(): void {
    this.#stroke = new Map()
  }

  end(): void {
    const stroke = this.#stroke
    this.#stroke = undefined
    if (!stroke?.size) return
    this.#done.push(stroke)
    this.#undone = []
    this.#bytes += stroke.size * TILE * TILE
    while (this.#bytes > UNDO_BYTES && this.#done.length > 1) this.#bytes -= this.#done.shift()!.size * TILE * TILE
  }

  /** Paint along a line, in pixels of the picture. Returns what changed. */
  line(x0: number, y0: number, x1: number, y1: number, brush: Brush): Rect {
    const length = Math.hypot(x1 - x0, y1 - y0)
    const dabs = Math.max(1, Math.ceil(length / Math.max(1, brush.size / 8)))
    for (let dab = 0; dab <= dabs; dab++) {
      const at = dab / dabs
      this.#dab(x0 + (x1 - x0) * at, y0 + (y1 - y0) * at, brush)
    }
    const reach = brush.size / 2 + 1
    const [left, top] = [Math.min(x0, x1) - reach, Math.min(y0, y1) - reach]
    return this.#within({ x: left, y: top, width: Math.max(x0, x1) + reach - left, height: Math.max(y0, y1) + reach - top })
  }

  /** Fill a rectangle between two corners. Returns what changed. */
  rectangle(x0: number, y0: number, x1: number, y1: number, erase = false): Rect {
    const [left, top] = [Math.round(Math.min(x0, x1)), Math.round(Math.min(y0, y1))]
    const area = this.#within({ x: left, y: top, width: Math.round(Math.max(x0, x1)) - left, height: Math.round(Math.max(y0, y1)) - top })
    this.#change(area, () => (erase ? 0 : 255))
    return area
  }

  /** Swap what is painted and what is not. */
  invert(): Rect {
    return this.#all((value) => 255 - value)
  }

  clear(): Rect {
    return this.#all(() => 0)
  }

  undo(): Rect | undefined {
    return this.#swap(this.#done, this.#undone)
  }

  redo(): Rect | undefined {
    return this.#swap(this.#undone, this.#done)
  }

  #all(value: (old: number) => number): Rect {
    const area = { x: 0, y: 0, width: this.width, height: this.height }
    this.begin()
    this.#change(area, value)
    this.end()
    return area
  }

  #dab(x: number, y: number, { size, hardness, erase }: Brush): void {
    const radius = size / 2
    const area = this.#within({ x: Math.floor(x - radius), y: Math.floor(y - radius), width: Math.ceil(size) + 2, height: Math.ceil(size) + 2 })
    this.#change(area, (old, column, row) => {
      const far = Math.hypot(column + 0.5 - x, row + 0.5 - y) / radius
      const share = far <= hardness ? 1 : far >= 1 ? 0 : (1 - far) / (1 - hardness)
      const value = Math.round(255 * share * share * (3 - 2 * share))
      return erase ? Math.min(old, 255 - value) : Math.max(old, value)
    })
  }

  #change(area: Rect, value: (old: number, column: number, row: number) => number): void {
    for (let row = area.y; row < area.y + area.height; row++) {
      for (let column = area.x; column < area.x + area.width; column++) {
        const at = row * this.width + column
        const now = value(this.pixels[at]!, column, row)
        if (now === this.pixels[at]) continue
        this.#remember(column, row)
        this.pixels[at] = now
      }
    }
  }

  #remember(column: number, row: number): void {
    const tile = Math.floor(row / TILE) * this.#across + Math.floor(column / TILE)
    if (this.#stroke && !this.#stroke.has(tile)) this.#stroke.set(tile, this.#read(tile))
  }

  #swap(from: Tiles[], to: Tiles[]): Rect | undefined {
    const tiles = from.pop()
    if (!tiles) return undefined
    const others: Tiles = new Map()
    for (const [tile, pixels] of tiles) {
      others.set(tile, this.#read(tile))
      const { x, y, width, height } = this.#place(tile)
      for (let row = 0; row < height; row++) {
        this.pixels.set(pixels.subarray(row * width, (row + 1) * width), (y + row) * this.width + x)
      }
    }
    to.push(others)
    const places = [...tiles.keys()].map((tile) => this.#place(tile))
    const x = Math.min(...places.map((one) => one.x))
    const y = Math.min(...places.map((one) => one.y))
    return {
      x,
      y,
      width: Math.max(...places.map((one) => one.x + one.width)) - x,
      height: Math.max(...places.map((one) => one.y + one.height)) - y,
    }
  }

  #read(tile: number): Uint8Array {
    const { x, y, width, height } = this.#place(tile)
    const pixels = new Uint8Array(width * height)
    for (let row = 0; row < height; row++) {
      const begin = (y + row) * this.width + x
      pixels.set(this.pixels.subarray(begin, begin + width), row * width)
    }
    return pixels
  }

  #place(tile: number): Rect {
    const x = (tile % this.#across) * TILE
    const y = Math.floor(tile / this.#across) * TILE
    return { x, y, width: Math.min(TILE, this.width - x), height: Math.min(TILE, this.height - y) }
  }

  #within({ x, y, width, height }: Rect): Rect {
    const left = Math.max(0, Math.floor(x))
    const top = Math.max(0, Math.floor(y))
    return {
      x: left,
      y: top,
      width: Math.max(0, Math.min(this.width, Math.ceil(x + width)) - left),
      height: Math.max(0, Math.min(this.height, Math.ceil(y + height)) - top),
    }
  }
}
