/**
 * Arrow keys among the pictures of a container: `<ul {@attach roving('a.open')}>`. One of them is in the tab order;
 * arrows go by their places on the screen, Home and End to the first and last.
 */
export function roving(selector: string) {
  return (container: HTMLElement) => {
    const all = () => [...container.querySelectorAll<HTMLElement>(selector)]
    const settle = (chosen?: HTMLElement) => {
      const items = all()
      const one = chosen ?? items.find((item) => item.tabIndex === 0) ?? items[0]
      for (const item of items) item.tabIndex = item === one ? 0 : -1
    }
    const keydown = (event: KeyboardEvent) => {
      const from = (event.target as Element).closest<HTMLElement>(selector)
      if (!from || event.ctrlKey || event.altKey || event.metaKey) return
      const to = next(from, all(), event.key)
      if (!to) return
      event.preventDefault()
      settle(to)
      to.focus()
    }
    const focusin = (event: FocusEvent) => {
      const one = (event.target as Element).closest<HTMLElement>(selector)
      if (one) settle(one)
    }
    const observer = new MutationObserver(() => settle())
    observer.observe(container, { childList: true, subtree: true })
    container.addEventListener('keydown', keydown)
    container.addEventListener('focusin', focusin)
    settle()
    return () => {
      observer.disconnect()
      container.removeEventListener('keydown', keydown)
      container.removeEventListener('focusin', focusin)
    }
  }
}

function next(from: HTMLElement, items: HTMLElement[], key: string): HTMLElement | undefined {
  const index = items.indexOf(from)
  if (key === 'ArrowRight') return items[index + 1]
  if (key === 'ArrowLeft') return items[index - 1]
  if (key === 'Home') return items[0]
  if (key === 'End') return items.at(-1)
  if (key !== 'ArrowDown' && key !== 'ArrowUp') return undefined
  const down = key === 'ArrowDown'
  const at = from.getBoundingClientRect()
  const beyond = items
    .map((item) => ({ item, box: item.getBoundingClientRect() }))
    .filter(({ box }) => (down ? box.top >= at.bottom - 1 : box.bottom <= at.top + 1))
  const edge = down ? Math.min(...beyond.map(({ box }) => box.top)) : Math.max(...beyond.map(({ box }) => box.bottom))
  const centre = (box: DOMRect) => Math.abs(box.left + box.width / 2 - at.left - at.width / 2)
  return beyond
    .filter(({ box }) => Math.abs((down ? box.top : box.bottom) - edge) < 2)
    .sort((a, b) => centre(a.box) - centre(b.box))[0]?.item
}
