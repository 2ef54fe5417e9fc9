// A conversation as a tree of messages: each edit and each new reply is a branch beside the old one.

let last = 0;

/** Return an id that is new in this browser. */
export function newId() {
  last = Math.max(last + 1, Date.now());
  return `id0${last.toString(36)}${Math.floor(Math.random() * 1e6).toString(36)}`;
}

export class Tree {
  /** `data`: { nodes: { id: { id, parent, role, content, … } }, chosen: { parent or "": child } }. */
  constructor(data = { nodes: {}, chosen: {} }) {
    this.data = data;
  }

  get nodes() {
    return this.data.nodes;
  }

  /** The messages from the first to the last of the chosen branch. */
  get path() {
    const path = [];
    for (let id = this.data.chosen[""]; id !== undefined; id = this.data.chosen[id]) {
      path.push(this.nodes[id]);
    }
    return path;
  }

  /** The messages from the first to one. */
  pathTo(node) {
    const path = [];
    for (let at = node; at; at = this.nodes[at.parent]) path.unshift(at);
    return path;
  }

  /** The branches at a message: it and those beside it, oldest first. */
  siblings(node) {
    return Object.values(this.nodes).filter((each) => each.parent === node.parent);
  }

  /** Add a message after another ("" for the first), and choose it. */
  add(parent, role, content, rest = {}) {
    const node = { id: newId(), parent, role, content, ...rest };
    this.nodes[node.id] = node;
    this.data.chosen[parent] = node.id;
    return node;
  }

  /** Choose the branch of a message. */
  choose(node) {
    this.data.chosen[node.parent] = node.id;
  }

  /** Return a tree that shares nothing with this one. */
  copy() {
    return new Tree(structuredClone(this.data));
  }
}
