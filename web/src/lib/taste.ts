/** The order of a set's pictures by taste. */

export interface Rated {
  /** Number of the picture, where it is done. */
  number: number | undefined
}

/**
 * Pictures by their scores, the highest first; then those that are done and have no score, and last those that are still drawn. Pictures of one rank
 * stay in their order.
 */
export function byTaste<T extends Rated>(pictures: readonly T[], scores: ReadonlyMap<number, number>): T[] {
  const rank = ({ number }: Rated): number => (number === undefined ? -Infinity : (scores.get(number) ?? -Number.MAX_VALUE))
  return pictures.toSorted((one, other) => (rank(one) === rank(other) ? 0 : rank(other) - rank(one)))
}
