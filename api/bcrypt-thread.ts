/** What runs in the threads that passwords are hashed in: see passwords.ts. */
import { constants, setPriority } from 'node:os'
import bcrypt from 'bcrypt'

// A thread has a priority of its own on Linux only: elsewhere this would be that of the whole process.
if (process.platform === 'linux') setPriority(constants.priority.PRIORITY_LOW)

/** The bcrypt hash of a password. */
export const hash = ({ password, cost }: { password: string; cost: number }) =>
  bcrypt.hashSync(password, cost)

/** Whether a hash is that of a password. */
export const compare = ({ password, hash }: { password: string; hash: string }) =>
  bcrypt.compareSync(password, hash)
