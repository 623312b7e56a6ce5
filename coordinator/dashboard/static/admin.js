async function refresh() {
  const pulse = document.getElementById("pulse");
  try {
    const answer = await fetch("/admin/live", {credentials: "same-origin"});
    if (answer.status === 401) { location.reload(); return; }
    if (!answer.ok) throw new Error(answer.status);
    document.getElementById("live").innerHTML = await answer.text();
    pulse.textContent = "live, " + new Date().toLocaleTimeString();
  } catch (error) {
    pulse.textContent = "the coordinator does not answer (" + error.message + "); trying again";
  }
  setTimeout(refresh, 2000);
}
refresh();
