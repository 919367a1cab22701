// A table whose cells are text, always: Vue's {{ }} makes text nodes, and nothing else here writes to the page.
export default {
  props: {
    label: String, columns: Array, rows: Array, sort: String, order: String, empty: String, chosen: String, choosable: Boolean,
  },
  emits: ["sort", "choose"],
  template: `
    <div class="table-wrap" tabindex="0" role="region" :aria-label="label">
      <table>
        <caption class="hidden">{{ label }}</caption>
        <thead><tr>
          <th v-for="column in columns" scope="col" :class="column.kind"
              :aria-sort="column.name === sort ? (order === 'asc' ? 'ascending' : 'descending') : undefined">
            <button v-if="column.sorts" type="button" @click="$emit('sort', column.name)"
              >{{ column.label }}<span aria-hidden="true">{{ column.name === sort ? (order === 'asc' ? ' ▴' : ' ▾') : '' }}</span></button>
            <template v-else>{{ column.label }}</template>
          </th>
        </tr></thead>
        <tbody @keydown="move">
          <tr v-for="row in rows" :key="row.key" :class="[row.kind, {choosable, chosen: choosable && row.key === chosen}]"
              :tabindex="choosable ? 0 : undefined" :data-key="row.key" :aria-selected="undefined"
              @click="choosable && $emit('choose', row.key)" @keydown.enter.self="choosable && $emit('choose', row.key)">
            <td v-for="(cell, i) in row.cells" :class="[columns[i].kind, cell.kind]" :title="cell.hint">
              <span v-if="cell.share !== undefined" class="share" :style="{width: cell.share * 100 + '%'}" aria-hidden="true"></span>
              <a v-if="cell.href" :href="cell.href" @click.stop>{{ cell.text }}</a>
              <span v-else>{{ cell.text }}</span>
            </td>
          </tr>
          <tr v-if="!rows.length && empty" class="empty"><td :colspan="columns.length">{{ empty }}</td></tr>
        </tbody>
      </table>
    </div>`,
  methods: {
    move(event) {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const row = event.target.closest("tr");
      if (!step || !this.choosable || !row || !row[step]) return;
      event.preventDefault();
      row[step].focus();
    },
  },
};
