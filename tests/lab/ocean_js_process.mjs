// ocean.js (`@oceanprotocol/lib` from npm) in a process of its own, driven by JSON lines.
//
// Started by tests/lab/ocean.py with the folder the library is installed in as its argument. The first line on standard
// input says where the node is and which key signs; every further line names one of the calls below and its arguments,
// and is answered by one line.

import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

// Standard output is for answers: whatever the library prints goes to standard error.
for (const level of ['log', 'info', 'debug', 'warn']) console[level] = console.error

const library = createRequire(`${process.argv[2]}/`)
const { ProviderInstance: provider } = library('@oceanprotocol/lib')
const { ethers } = library('ethers')

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`)

const { url, key } = JSON.parse((await lines.next()).value)
const wallet = new ethers.Wallet(key)

const only = (jobs) => (Array.isArray(jobs) ? jobs[0] : jobs)
const input = (documentId) => ({ documentId, serviceId: '0' })

// Reads a stream to its end, or until *until* has come by; the rest is not waited for.
async function read(stream, until) {
  let text = ''
  for await (const piece of stream) {
    text += Buffer.from(piece).toString()
    if (until && text.includes(until)) break
  }
  return text
}

// A token takes the place of the wallet wherever one is given.
const calls = {
  address: () => wallet.address,
  is_valid: () => provider.isValidProvider(url),
  environments: () => provider.getComputeEnvironments(url),
  start: async ({ environment, data_sets, algorithm, custom, code, token }) => {
    const chosen = code ? { meta: code } : input(algorithm)
    if (custom) chosen.algocustomdata = custom
    return only(await provider.freeComputeStart(url, token || wallet, environment, data_sets.map(input), chosen))
  },
  status: async ({ job, token }) => only(await provider.computeStatus(url, token || wallet, job)),
  log: async ({ job, until, token }) => read(await provider.computeStreamableLogs(url, token || wallet, job), until),
  result: async ({ job, index, offset }) => read(await provider.getComputeResult(url, wallet, job, index, offset || 0)),
  stop: async ({ job, token }) => only(await provider.computeStop(job, url, token || wallet)),
  create_token: () => provider.generateAuthToken(wallet, url),
  invalidate_token: ({ token }) => provider.invalidateAuthToken(wallet, token, url)
}

say({ result: 'ready' })
for await (const line of lines) {
  const { call, arguments: given } = JSON.parse(line)
  try {
    say({ result: (await calls[call](given)) ?? null })
  } catch (error) {
    say({ error: `${error?.name ?? 'Error'}: ${error?.message ?? error}` })
  }
}
process.exit(0)
