/** Widths and heights of pictures: ratios at the number of pixels that a model draws best. */
export interface Size {
  width: number
  height: number
}
type Ratio = readonly [number, number]

/** Lying ones; upright they are turned. */
export const RATIOS: readonly Ratio[] = [
  [1, 1],
  [4, 3],
  [3, 2],
  [16, 9],
]

/** Sides are multiples of it. */
export const UNIT = 8
export const LEAST = 64

/** The size of a ratio with about as many pixels as `base`, in whole units. */
export function sized([across, high]: Ratio, base: Size): Size {
  const wanted = across / high
  const side = Math.sqrt(base.width * base.height)
  const whole = (length: number) => Math.max(LEAST, Math.round(length / UNIT) * UNIT)
  return { width: whole(side * Math.sqrt(wanted)), height: whole(side / Math.sqrt(wanted)) }
}

/** The ratio that a size is of with the same base, lying or upright; undefined for a size of the user's own. */
export function ratioOf(size: Size, base: Size): Ratio | undefined {
  const lying = { width: Math.max(size.width, size.height), height: Math.min(size.width, size.height) }
  return RATIOS.find((ratio) => {
    const made = sized(ratio, base)
    return made.width === lying.width && made.height === lying.height
  })
}

/** A size turned. */
export const turned = ({ width, height }: Size): Size => ({ width: height, height: width })
