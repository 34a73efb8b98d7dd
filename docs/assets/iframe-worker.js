// A browser gives a page that is opened from the disk no Worker, and the search needs one. Here the worker's script
// runs in a hidden frame instead. Served pages are left alone.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html>"
      this.ready = new Promise(resolve => {
        frame.onload = () => {
          const inside = frame.contentWindow
          const load = source => new Promise(done => {
            const script = inside.document.createElement("script")
            script.src = source
            script.onload = done
            inside.document.body.append(script)
          })
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          inside.importScripts = (...sources) =>
            sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
          load(url).then(() => resolve(inside))
        }
      })
      document.body.append(frame)
    }
    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }
  }
  window.Worker = window.IFrameWorker
}
