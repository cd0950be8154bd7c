/** Rows of pictures of equal height that fill the width, each picture whole. */

export interface Rows {
  /** Index of the first picture of each row, and after the last row the number of pictures. */
  first: Uint32Array
  /** Upper edge of each row in pixels, and after the last row the height of all. */
  top: Float64Array
  /** Height of each row without the gap below. */
  height: Float64Array
}

const MOST_STRETCH = 1.5

/**
 * Lay pictures out.
 *
 * @param ratios Width by height of each picture.
 * @param width Width to fill, in pixels.
 * @param wanted Height that rows come near to.
 * @param starts Indices of pictures that begin a section, ascending: each begins a row, with `heading` pixels above it.
 */
export function layOut(
  ratios: ArrayLike<number>,
  width: number,
  wanted: number,
  gap: number,
  starts: number[] = [],
  heading = 0,
): Rows {
  const first: number[] = []
  const top: number[] = []
  const height: number[] = []
  let y = 0
  let begin = 0
  let sum = 0
  let section = 0
  const close = (end: number, tall: number) => {
    if (begin === starts[section]) {
      section += 1
      y += heading
    }
    first.push(begin)
    top.push(y)
    height.push(tall)
    y += tall + gap
    begin = end
    sum = 0
  }
  /** Close the last row of a section or of all, which may be short. */
  const closeShort = (end: number) => {
    if (begin >= end) return
    const tall = (width - gap * (end - begin - 1)) / sum
    close(end, tall > wanted * MOST_STRETCH ? wanted : tall)
  }
  for (let index = 0; index < ratios.length && width > 0; index++) {
    if (index === starts[begin === starts[section] ? section + 1 : section]) closeShort(index)
    sum += ratios[index]!
    const tall = (width - gap * (index - begin)) / sum
    if (tall <= wanted) close(index + 1, tall)
  }
  if (width > 0) closeShort(ratios.length)
  return {
    first: Uint32Array.from([...first, ratios.length]),
    top: Float64Array.from([...top, Math.max(0, y - gap)]),
    height: Float64Array.from(height),
  }
}

/** The row at a height, or that of a picture with `rows.first`: the last whose entry is not above `value`. */
export function rowAt(edges: ArrayLike<number>, value: number): number {
  let low = 0
  let high = edges.length - 2
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (edges[middle]! <= value) low = middle
    else high = middle - 1
  }
  return Math.max(0, low)
}
