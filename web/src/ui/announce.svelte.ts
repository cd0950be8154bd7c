/** Announcements for screen readers: `announce('Picture done')`. */

class Announcements {
  polite = $state('')
  assertive = $state('')
}

export const announcements = new Announcements()

export function announce(text: string, { assertive = false } = {}): void {
  const place = assertive ? 'assertive' : 'polite'
  announcements[place] = '' // else the same text would not be announced again
  setTimeout(() => (announcements[place] = text), 30)
}
