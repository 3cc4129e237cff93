// A report in one file that is opened at another page than its first does not show that one meanwhile.
if (location.hash.includes(".html")) document.documentElement.style.visibility = "hidden";
