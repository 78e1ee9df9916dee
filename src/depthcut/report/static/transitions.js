// Transitions: where curves pass from the dense level to chance. Each interval is [estimate, low, high] or null.

const NOISY = 2; // residuals in standard errors

/** Return a copy with the highest midpoint first, and curves without a transition last. */
export const sortByMidpoint = (curves) =>
  [...curves].sort(({ transition: one }, { transition: other }) => {
    if (!one.midpoint || !other.midpoint) return Boolean(other.midpoint) - Boolean(one.midpoint);
    return other.midpoint[0] - one.midpoint[0];
  });

/** Return why there is no transition, and whether the points scatter more than their errors allow. */
export function transitionNote(transition, reasons) {
  const scatter = transition.rough > NOISY ? `scatters ${transition.rough.toFixed(1)} times its errors` : "";
  return [reasons[transition.why], scatter].filter(Boolean).join("; ");
}

/** Return the tasks whose transitions were sought, and the first for which one was found. */
export function transitionTasks(transitions) {
  const names = [...new Set(transitions.map(({ name }) => name))];
  const found = names.find((name) => transitions.some((each) => each.name === name && !each.why));
  return { names, first: found || names[0] };
}
