// A button that saves a file: a text, or the whole answer to a question. An answer that breaks off is not saved.
export default {
  props: { label: String, name: String, text: String, path: String, body: String },
  emits: ["failed"],
  data: () => ({ busy: false }),
  template: `<button type="button" :disabled="busy" @click="save">{{ busy ? "…" : label }}</button>`,
  methods: {
    async save() {
      this.busy = true;
      try {
        const given = this.path ? await this.asked() : new Blob([this.text]);
        if (!given) return;
        const address = URL.createObjectURL(given);
        Object.assign(document.createElement("a"), { href: address, download: this.name }).click();
        setTimeout(() => URL.revokeObjectURL(address), 60_000);
      } finally {
        this.busy = false;
      }
    },
    async asked() {
      try {
        const answer = await fetch(this.path, {
          method: "POST", headers: { "content-type": "application/json" }, body: this.body,
        });
        if (answer.ok) return await answer.blob();
        const said = await answer.json();
        this.$emit("failed", [said.error, said.hint]);
      } catch {
        this.$emit("failed", ["The answer broke off", "Ask for less: a LIMIT, a shorter time."]);
      }
      return null;
    },
  },
};
