import { t } from '../../i18n'
import { toast } from '../../ui/toasts.svelte'

/** Copy, and say whether it was possible: plain HTTP from another device has no clipboard. */
export async function copying(write: () => Promise<void>): Promise<void> {
  try {
    await write()
    toast({ text: t.viewer.copied })
  } catch {
    toast({ text: t.viewer.notCopied, tone: 'error' })
  }
}
