'use strict';
const read = id => JSON.parse(document.getElementById(id).textContent);
const get = id => document.getElementById(id);
const about = read('about');
// A row: file, prediction, p of each class, p of any lesion, positive, spread,
// why it is unlike training, picture; null for what is not known.
const rows = read('rows').map(r => ({
  file: r[0], prediction: r[1], p: r[2], lesion: r[3], positive: r[4],
  spread: r[5], unlike: r[6], picture: r[7],
}));
const PAGE = 100;
const top_ = row => Math.max(...row.p);
const columns = [
  {title: 'file', text: true, value: row => row.file},
  {title: 'prediction', text: true, value: row => row.prediction},
];
if (about.lesion) {
  columns.push({title: 'p any lesion', bar: true, value: row => row.lesion});
}
if (about.threshold !== null) {
  columns.push({title: 'positive', value: row => row.positive, yes: true});
}
about.classes.forEach((name, i) => columns.push(
  {title: 'p ' + name, bar: true, value: row => row.p[i]}));
if (about.spread) columns.push({title: 'spread', value: row => row.spread});
if (about.unlike) {
  columns.push({title: 'unlike training', text: true, warn: true,
                value: row => row.unlike});
}
const drawn = rows.some(row => row.picture);
const state = {column: about.lesion ? 2 : 0, down: about.lesion, page: 0};
const open_ = new Set();

about.classes.forEach(name => {
  const option = document.createElement('option');
  option.textContent = option.value = name;
  get('class').append(option);
});
get('positive-label').hidden = about.threshold === null;
get('unlike-label').hidden = !about.unlike;
get('drawn-label').hidden = !drawn;
get('least-label').firstChild.textContent =
  about.lesion ? 'p of any lesion at least ' : 'highest p at least ';

function chosen() {
  const text = get('file').value.toLowerCase();
  const least = Number(get('least').value) || 0;
  const found = rows.filter(row =>
    row.file.toLowerCase().includes(text) &&
    (!get('class').value || row.prediction === get('class').value) &&
    (about.lesion ? row.lesion : top_(row)) >= least &&
    (!get('positive').checked || row.positive) &&
    (!get('unlike').checked || row.unlike) &&
    (!get('drawn').checked || row.picture));
  const {value, text: isText} = columns[state.column];
  const sign = state.down ? -1 : 1;
  return found.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = isText
      ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
    return sign * order;
  });
}

function cell(column, row) {
  const td = document.createElement('td');
  const value = column.value(row);
  if (column.text) {
    td.className = 'text';
    if (column.title === 'file' && row.picture) {
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = value;
      button.setAttribute('aria-expanded', open_.has(row));
      button.onclick = () => {
        open_.has(row) ? open_.delete(row) : open_.add(row);
        show();
      };
      td.append(button);
    } else {
      td.textContent = value;
    }
    if (column.warn && value) td.classList.add('yes');
  } else if (column.yes) {
    td.textContent = value ? 'yes' : 'no';
    if (value) td.className = 'yes';
  } else {
    td.textContent = value === null ? '' : value.toFixed(3);
    if (column.bar) {
      td.className = 'bar';
      const bar = document.createElement('i');
      bar.style.width = `calc(${(100 * value).toFixed(1)}% - .8rem)`;
      td.append(bar);
    }
  }
  return td;
}

function picture(row) {
  const tr = document.createElement('tr');
  const td = document.createElement('td');
  const img = document.createElement('img');
  tr.className = 'picture';
  td.colSpan = columns.length;
  img.src = row.picture;
  img.alt = 'The radiograph, Grad-CAM and the attention maps of ' + row.file;
  td.append(img);
  tr.append(td);
  return tr;
}

function show() {
  const found = chosen();
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  get('head').replaceChildren(...columns.map((column, i) => {
    const th = document.createElement('th');
    const button = document.createElement('button');
    const sorted = i === state.column;
    th.scope = 'col';
    if (column.text) th.className = 'text';
    if (sorted) th.ariaSort = state.down ? 'descending' : 'ascending';
    button.type = 'button';
    button.textContent =
      column.title + (sorted ? (state.down ? ' \u25be' : ' \u25b4') : '');
    button.onclick = () => {
      state.down = sorted ? !state.down : !column.text;
      state.column = i;
      state.page = 0;
      show();
    };
    th.append(button);
    return th;
  }));
  const body = [];
  for (const row of found.slice(state.page * PAGE, (state.page + 1) * PAGE)) {
    const tr = document.createElement('tr');
    tr.append(...columns.map(column => cell(column, row)));
    body.push(tr);
    if (row.picture && open_.has(row)) body.push(picture(row));
  }
  get('body').replaceChildren(...body);
  get('count').textContent =
    `${found.length.toLocaleString('en')} of ${rows.length.toLocaleString('en')}`
    + ' shown' + (drawn ? '; a name with a line under it opens its picture' : '');
  get('page').textContent = `page ${state.page + 1} of ${pages}`;
  get('previous').disabled = state.page === 0;
  get('next').disabled = state.page === pages - 1;
  get('pages').hidden = pages === 1;
}

get('filters').addEventListener('input', () => { state.page = 0; show(); });
get('filters').addEventListener('submit', event => event.preventDefault());
get('previous').onclick = () => { state.page -= 1; show(); };
get('next').onclick = () => { state.page += 1; show(); };
show();
