/** How two pictures differ, pixel by pixel. */

export interface Difference {
  /** Pixels that differ in any channel, of all. */
  different: number
  total: number
  /** Largest difference of a channel, from 0 to 255. */
  largest: number
}

/** The share of pixels that differ: `12 %`, `0.25 %`. */
export const shareOf = ({ different, total }: Difference): string => `${((100 * different) / total).toFixed(different / total < 0.01 ? 2 : 0)} %`

const FLOOR = 40 // brightness of the least difference, so that it is seen

/**
 * Compare two pictures of the same size.
 *
 * @param a, b RGBA of each pixel, row by row.
 * @param map Where the map goes, of the same length: black where they are equal, brighter the more they differ.
 */
export function differenceOf(a: Uint8ClampedArray, b: Uint8ClampedArray, map: Uint8ClampedArray): Difference {
  let different = 0
  let largest = 0
  for (let at = 0; at < a.length; at += 4) {
    let most = 0
    for (let channel = 0; channel < 4; channel++) most = Math.max(most, Math.abs(a[at + channel]! - b[at + channel]!))
    if (most) different += 1
    largest = Math.max(largest, most)
    const light = most ? FLOOR + (most * (255 - FLOOR)) / 255 : 0
    map[at] = light
    map[at + 1] = most ? Math.max(0, light - 90) : 0
    map[at + 2] = 0
    map[at + 3] = 255
  }
  return { different, total: a.length / 4, largest }
}

async function pixelsOf(url: string, width: number, height: number): Promise<ImageData> {
  const picture = new Image()
  picture.src = url
  await picture.decode()
  const canvas = document.createElement('canvas')
  canvas.width = width
  canvas.height = height
  const context = canvas.getContext('2d', { willReadFrequently: true })!
  context.drawImage(picture, 0, 0, width, height)
  return context.getImageData(0, 0, width, height)
}

interface Picture {
  url: string
  width: number
  height: number
}

/** Draw the map of two pictures on a canvas. A picture of another size is scaled to that of the first one. */
export async function drawDifference(a: Picture, b: Picture, canvas: HTMLCanvasElement): Promise<Difference> {
  const { width, height } = a
  const [first, second] = await Promise.all([pixelsOf(a.url, width, height), pixelsOf(b.url, width, height)])
  canvas.width = width
  canvas.height = height
  const context = canvas.getContext('2d')!
  const map = context.createImageData(width, height)
  const found = differenceOf(first.data, second.data, map.data)
  context.putImageData(map, 0, 0)
  return found
}
