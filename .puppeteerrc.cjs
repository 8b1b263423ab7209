// npm ci never downloads a browser: the worker looks for one itself (wa-worker/browser.ts).
module.exports = { skipDownload: true }
