export const dial = {
  open: (title: string) => `${title}: try several values`,
  title: (title: string) => `${title} at several values`,
  from: 'From',
  to: 'To',
  wrongRange: 'To must be the larger number.',
  sameSeed: 'One seed for all of them: only this setting changes.',
  choose: 'Choose a picture to take its value. Esc changes nothing.',
  draw: (count: number) => `Draw ${count}`,
  price: (count: number, estimate: string) => `${count} pictures, ${estimate}`,
  tile: (title: string, value: string) => `${title} ${value}`,
  now: (value: string) => `${value}, now`,
}
