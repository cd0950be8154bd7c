/** Zoom and place of a picture on its stage, so that pictures of other sizes can share them. */

export interface Size {
  width: number
  height: number
}

export interface Zoom {
  /** Size, as a multiple of the one at which the picture just fits. */
  factor: number
  /** Point of the picture that is in the middle of the stage, from 0 to 1. */
  x: number
  y: number
}

export const FIT: Zoom = { factor: 1, x: 0.5, y: 0.5 }
const LARGEST = 32 // pixels of the screen for one of the picture

/** Pixels of the screen for one of the picture, where it just fits. */
export const fitScale = (stage: Size, picture: Size): number => Math.min(stage.width / picture.width, stage.height / picture.height) || 1

/** The zoom at which a pixel of the picture is one of the screen. */
export const actualSize = (zoom: Zoom, stage: Size, picture: Size): Zoom => settle({ ...zoom, factor: 1 / fitScale(stage, picture) }, stage, picture)

/** A zoom within its limits: no smaller than fitting or its actual size, and no ground beside what covers the stage. */
export function settle(zoom: Zoom, stage: Size, picture: Size): Zoom {
  const fit = fitScale(stage, picture)
  const factor = Math.min(Math.max(zoom.factor, Math.min(1, 1 / fit)), Math.max(1, LARGEST / fit))
  const along = (at: number, room: number, size: number): number => {
    const half = room / 2 / (size * fit * factor)
    return half >= 0.5 ? 0.5 : Math.min(Math.max(at, half), 1 - half)
  }
  return { factor, x: along(zoom.x, stage.width, picture.width), y: along(zoom.y, stage.height, picture.height) }
}

/** Zoom by a factor, so that what is at a point of the stage, from its middle, stays there. */
export function zoomAt(zoom: Zoom, by: number, point: { x: number; y: number }, stage: Size, picture: Size): Zoom {
  const { factor } = settle({ ...zoom, factor: zoom.factor * by }, stage, picture)
  const fit = fitScale(stage, picture)
  const shift = (1 / zoom.factor - 1 / factor) / fit
  return settle({ factor, x: zoom.x + (point.x * shift) / picture.width, y: zoom.y + (point.y * shift) / picture.height }, stage, picture)
}

/** Move the picture by pixels of the screen. */
export function pan(zoom: Zoom, by: { x: number; y: number }, stage: Size, picture: Size): Zoom {
  const scale = fitScale(stage, picture) * zoom.factor
  return settle({ ...zoom, x: zoom.x - by.x / scale / picture.width, y: zoom.y - by.y / scale / picture.height }, stage, picture)
}
